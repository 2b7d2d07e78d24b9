//! Tests of the policies, alone and with a real scheduler.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::engine::account::Account;
use crate::engine::costs::{Costs, PerTicket, tests::small_base};
use crate::engine::plan::Plan;
use crate::engine::scheduler::{Demand, NewSequence, Scheduler, SchedulerConfig};
use crate::ticket::Digest;

const LIMITS: TurnLimits = TurnLimits {
    steps: 8,
    tokens: 512,
};
const MILLION: usize = 1_000_000;

fn ticket(n: u8) -> Group {
    Some(Digest([n; 32]))
}

fn load(group: Group, rows: usize, nonzeros: usize) -> Load {
    Load {
        group,
        rows,
        nonzeros,
        has_layout: true,
        urgent: false,
    }
}

fn by_cost() -> ByCost {
    ByCost::new(small_base(), LIMITS)
}

/// Plans the next step of groups whose load is constant.
fn step(policy: &mut ByCost, loads: &[Load]) -> Groups {
    let groups = policy.next(loads).expect("there is something to do");
    let ran = loads.iter().filter(|load| groups.contain(load.group));
    let rows: Vec<_> = ran.map(|load| (load.group, load.rows)).collect();
    policy.record_step(&rows);
    groups
}

/// Plans `count` steps, with the longest-waiting group first in each.
fn steps(policy: &mut ByCost, loads: &[Load], count: usize) -> Vec<Groups> {
    let mut waiting = loads.to_vec();
    let mut one = || {
        let groups = step(policy, &waiting);
        // A stable sort: served groups go behind the others.
        waiting.sort_by_key(|load| groups.contain(load.group));
        groups
    };
    (0..count).map(|_| one()).collect()
}

#[test]
fn a_ticket_alone_is_applied_once_overlaying_it_has_cost_a_swap() {
    let (costs, nonzeros) = (small_base(), MILLION + MILLION / 10);
    let loads = [load(ticket(1), 1, nonzeros)];
    let after = costs.swap(nonzeros) / costs.overlay(nonzeros, 1);
    let groups = steps(&mut by_cost(), &loads, 200);
    let overlaid = groups.iter().take_while(|g| **g == Groups::All).count();
    assert_eq!(overlaid, after.ceil() as usize - 1);
    let then = &groups[overlaid..];
    assert!(then.iter().all(|groups| *groups == Groups::One(ticket(1))));
    // A single prompt costs as much.
    let loads = [load(ticket(1), 512, MILLION)];
    assert_eq!(step(&mut by_cost(), &loads), Groups::One(ticket(1)));
}

#[test]
fn only_planned_rows_are_recorded() {
    let loads = [1, 2].map(|n| load(ticket(n), 64, 10 * MILLION));
    let mut policy = by_cost();
    let mut seen = Vec::new();
    for _ in 0..40 {
        let groups = policy.next(&loads).expect("there is something to do");
        // The second one never finds room in a step.
        if groups.contain(ticket(1)) {
            policy.record_step(&[(ticket(1), 64)]);
        } else {
            policy.record_step(&[]);
        }
        seen.push(groups);
    }
    assert!(seen.contains(&Groups::One(ticket(1))));
    assert!(!seen.contains(&Groups::One(ticket(2))));
}

#[test]
fn a_step_that_is_not_planned_is_not_paid() {
    let fresh = Load {
        has_layout: false,
        ..load(ticket(1), 1, MILLION)
    };
    let mut policy = by_cost();
    // Its group was preempted each time.
    for _ in 0..5 {
        assert_eq!(policy.next(&[fresh]), Some(Groups::One(ticket(1))));
        policy.reverted();
    }
}

#[test]
fn a_ticket_alone_is_not_laid_out_for_a_few_steps() {
    let fresh = Load {
        has_layout: false,
        ..load(ticket(1), 1, MILLION)
    };
    let mut policy = by_cost();
    assert_eq!(step(&mut policy, &[fresh]), Groups::One(ticket(1)));
    // The layout would have cost more than two swaps, and is counted once.
    policy.reverted();
    assert_eq!(step(&mut policy, &[fresh]), Groups::One(ticket(1)));
    policy.reverted();
    assert_eq!(step(&mut policy, &[fresh]), Groups::All);
    // Beside others it will be overlaid sooner or later, so the layout does not count.
    let company = [fresh, load(None, 1, 0)];
    assert_eq!(step(&mut by_cost(), &company), Groups::All);
}

#[test]
fn the_base_alone_always_runs_as_all_groups() {
    let groups = steps(&mut by_cost(), &[load(None, 4, 0)], 20);
    assert!(groups.iter().all(|groups| *groups == Groups::All));
    assert_eq!(by_cost().next(&[]), None);
}

#[test]
fn decoding_groups_run_together() {
    let loads = [1, 2, 3].map(|n| load(ticket(n), 2, MILLION));
    let groups = steps(&mut by_cost(), &loads, 100);
    assert!(groups.iter().all(|groups| *groups == Groups::All));
}

#[test]
fn another_group_ends_the_turn_of_one_that_decodes() {
    let mut policy = by_cost();
    let one = load(ticket(1), 1, MILLION);
    assert_eq!(steps(&mut policy, &[one], 50)[49], Groups::One(ticket(1)));
    let both = [load(ticket(2), 1, MILLION), one];
    assert_eq!(step(&mut policy, &both), Groups::All);
}

#[test]
fn a_dense_prompt_is_applied_and_takes_turns_with_the_groups_that_decode() {
    let dense = load(ticket(9), 512, 10 * MILLION);
    let decode = [1, 2].map(|n| load(ticket(n), 4, MILLION));
    let loads = [dense, decode[0], decode[1]];
    let groups = steps(&mut by_cost(), &loads, 90);
    // At once, and for one chunk, which is a turn.
    assert_eq!(groups[0], Groups::One(ticket(9)));
    let rest = Groups::AllBut(vec![ticket(9)]);
    assert_eq!(groups[1..9], vec![rest; 8]);
    assert_eq!(groups[9], Groups::One(ticket(9)));
    let own = groups.iter().filter(|g| **g == Groups::One(ticket(9)));
    assert_eq!(own.count(), 10);
}

#[test]
fn dense_prompts_take_turns() {
    let loads = [1, 2, 3].map(|n| load(ticket(n), 256, 10 * MILLION));
    let groups = steps(&mut by_cost(), &loads, 60);
    for n in 1..=3 {
        let own = groups.iter().filter(|g| **g == Groups::One(ticket(n)));
        assert_eq!(own.count(), 20, "{groups:?}");
    }
}

#[test]
fn a_balance_outlasts_a_revert_but_not_the_steps_of_another_ticket() {
    let mut policy = by_cost();
    let one = [load(ticket(1), 1, MILLION)];
    steps(&mut policy, &one, 100);
    // The engine was idle, so the base was restored.
    policy.reverted();
    assert_eq!(step(&mut policy, &one), Groups::One(ticket(1)));
    // The step did not earn what the second swap cost.
    policy.reverted();
    assert_eq!(step(&mut policy, &one), Groups::All);
    steps(&mut policy, &one, 100);
    policy.reverted();
    step(&mut policy, &[load(ticket(2), 1, MILLION)]);
    assert_eq!(step(&mut policy, &one), Groups::All);
}

/// Seconds of a step with its swap; `applied` is the group whose ticket is in the weights.
fn seconds(costs: &Costs, loads: &[Load], groups: &Groups, applied: &mut Group) -> f64 {
    let mine = loads.iter().filter(|load| groups.contain(load.group));
    let mine: Vec<Load> = mine.copied().collect();
    match groups {
        Groups::One(group) => {
            let swapped = *applied != *group;
            *applied = *group;
            costs.step(mine[0].rows) + f64::from(swapped) * costs.swap(mine[0].nonzeros)
        }
        _ => {
            *applied = None;
            costs.together(&mine)
        }
    }
}

/// Costs of any machine: the small base's, each times a power of two.
fn any_costs() -> impl Strategy<Value = Costs> {
    let factor = || (-4i32..=4).prop_map(|power| 2f64.powi(power));
    (factor(), factor(), factor()).prop_map(|(step, swap, overlay)| {
        let base = small_base();
        let times = |cost: PerTicket, factor: f64| PerTicket {
            fixed: cost.fixed * factor,
            per_nonzero: cost.per_nonzero * factor,
        };
        let steps = base.steps().iter().map(|&(rows, s)| (rows, s * step));
        let overlays = base.overlays().iter();
        let overlays = overlays.map(|&(rows, cost)| (rows, times(cost, overlay)));
        Costs::new(
            steps.collect(),
            overlays.collect(),
            times(base.apply, swap),
            times(base.revert, swap),
            base.layout,
        )
    })
}

proptest! {
    /// Ski rental: beyond the bare steps, one ticket alone costs at most twice the cheaper of
    /// overlaying it in every step and swapping it once.
    #[test]
    fn hindsight_is_at_most_twice_as_good(
        costs in any_costs(),
        nonzeros in 1usize..20 * MILLION,
        rows in prop::collection::vec(1usize..512, 1..60),
    ) {
        let mut policy = ByCost::new(costs.clone(), LIMITS);
        let (mut extra, mut overlaid, mut applied) = (0.0, 0.0, None);
        for rows in rows {
            let loads = [load(ticket(1), rows, nonzeros)];
            let groups = step(&mut policy, &loads);
            extra += seconds(&costs, &loads, &groups, &mut applied) - costs.step(rows);
            overlaid += costs.overlay(nonzeros, rows);
        }
        let best = costs.swap(nonzeros).min(overlaid);
        prop_assert!(extra <= 2.0 * best * (1.0 + 1e-9), "{extra} of {best}");
    }

    /// Under any load, the savings of the steps before a swap pay for it: tickets do not thrash.
    #[test]
    fn swaps_are_paid_from_what_they_save(
        costs in any_costs(),
        history in prop::collection::vec(
            prop::collection::btree_map(0u8..4, 1usize..300, 1..4), 1..200
        ),
    ) {
        let mut policy = ByCost::new(costs.clone(), LIMITS);
        let sizes = [0, 10 * MILLION, MILLION, 40 * MILLION];
        let mut applied = None;
        let mut paid: BTreeMap<Group, (f64, f64)> = BTreeMap::new();
        for at_work in history {
            let group = |n: u8| if n == 0 { None } else { ticket(n) };
            let one = |(&n, &rows): (&u8, &usize)| load(group(n), rows, sizes[usize::from(n)]);
            let loads: Vec<Load> = at_work.iter().map(one).collect();
            let total = loads.iter().map(|load| load.rows).sum();
            let groups = step(&mut policy, &loads);
            for load in loads.iter().filter(|load| groups.contain(load.group)) {
                let (swaps, saved) = paid.entry(load.group).or_default();
                *saved += costs.apply_savings(load, total).max(0.0);
                if groups == Groups::One(load.group) && applied != load.group {
                    *swaps += costs.swap(load.nonzeros);
                }
                prop_assert!(*swaps <= *saved * (1.0 + 1e-9), "{swaps} of {saved}");
            }
            applied = match groups {
                Groups::One(group) => group,
                _ => None,
            };
        }
    }

    /// Steady work takes at most twice the time of the cheaper mode, besides a ticket's
    /// first swap and the steps that earn it. (Each group is compared with all the others, so turns
    /// that pay only if all groups take them are not found: if overlays cost about as much as a
    /// step, up to half the time is lost, and more with more than four groups.)
    #[test]
    fn steady_work_is_done_the_cheaper_way(
        costs in any_costs(),
        rows in 1usize..256,
        sizes in prop::collection::vec(MILLION / 10..40 * MILLION, 1..5),
    ) {
        let loads = (1u8..).zip(&sizes).map(|(n, &nonzeros)| load(ticket(n), rows, nonzeros));
        let loads: Vec<Load> = loads.collect();
        let mut policy = ByCost::new(costs.clone(), LIMITS);
        let mut waiting = loads.clone();
        let (mut spent, mut done, mut applied) = (0.0, 0, None);
        for _ in 0..800 {
            let groups = step(&mut policy, &waiting);
            spent += seconds(&costs, &waiting, &groups, &mut applied);
            done += waiting.iter().filter(|load| groups.contain(load.group)).count();
            waiting.sort_by_key(|load| groups.contain(load.group));
        }
        let turn_steps = LIMITS.steps_of(rows);
        let together = costs.together(&loads) / loads.len() as f64;
        let in_turns = costs.in_turns(&loads, turn_steps) / loads.len() as f64;
        let best = together.min(in_turns) * f64::from(done as u32);
        let swaps: f64 = sizes.iter().map(|&nonzeros| costs.swap(nonzeros)).sum();
        prop_assert!(
            spent <= 2.0 * (best + swaps),
            "{spent}, best {best}, swaps {swaps}, together {together}, in turns {in_turns}"
        );
    }
}

/// A sequence: prompt tokens, tokens to generate, group, step of arrival.
type SimulatedRequest = (usize, usize, u8, usize);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// With a real scheduler, everything ends, and no group with work waits longer than a turn of
    /// each other group, and of each newcomer since, and a step between any two. A newcomer is a
    /// sequence that waits for its first token.
    #[test]
    fn no_group_with_work_starves(
        costs in any_costs(),
        jobs in prop::collection::vec((1usize..600, 1usize..60, 0u8..5, 0usize..100), 1..30),
        sizes in prop::collection::vec(1000usize..40 * MILLION, 5),
    ) {
        run_to_the_end(ByCost::new(costs, LIMITS), &jobs, &sizes)?;
    }
}

fn run_to_the_end(
    mut policy: ByCost,
    jobs: &[SimulatedRequest],
    sizes: &[usize],
) -> Result<(), TestCaseError> {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: LIMITS.tokens,
        blocks: 1000,
        block_size: 16,
    });
    let group = |n: u8| if n == 0 { None } else { ticket(n) };
    let mut left: BTreeMap<u64, usize> = BTreeMap::new();
    let mut last_served: BTreeMap<Group, usize> = BTreeMap::new();
    // The step in which each sequence got its first token.
    let mut sampled: BTreeMap<u64, usize> = BTreeMap::new();
    for now in 0.. {
        prop_assert!(now < 20_000, "{} sequences never end", left.len());
        for (id, job) in (1u64..).zip(jobs).filter(|(_, job)| job.3 == now) {
            scheduler.add(NewSequence {
                id,
                group: group(job.2),
                account: Account::Group(group(job.2)),
                tokens: job.0,
                ..NewSequence::default()
            });
            left.insert(id, job.1);
        }
        let weighed = |demand: &Demand| {
            let nonzeros = (1u8..).zip(sizes).find(|(n, _)| ticket(*n) == demand.group);
            let nonzeros = nonzeros.map_or(0, |(_, size)| *size);
            Load {
                urgent: demand.urgent,
                ..load(demand.group, demand.rows, nonzeros)
            }
        };
        scheduler.make_room();
        let loads: Vec<Load> = scheduler.demand().iter().map(weighed).collect();
        last_served.retain(|group, _| loads.iter().any(|load| load.group == *group));
        for load in &loads {
            let since = *last_served.entry(load.group).or_insert(now);
            let awaits = |id: &u64| left.contains_key(id) && !sampled.contains_key(id);
            let sampled_since = sampled.values().filter(|&&step| step >= since);
            let newcomers = left.keys().filter(|id| awaits(id)).count() + sampled_since.count();
            let turns = loads.len().max(5) + newcomers;
            let most = turns * (LIMITS.steps + 1);
            prop_assert!(
                now - since <= most,
                "{:?} waits since {since}, {now}",
                load.group
            );
        }
        let Some(groups) = policy.next(&loads) else {
            if now > 100 && left.is_empty() {
                return Ok(());
            }
            continue;
        };
        let Some(plan) = scheduler.schedule(&groups) else {
            prop_assert!(groups != Groups::All);
            continue;
        };
        policy.record_step(&plan.rows_by_group());
        served(&mut scheduler, &plan, &mut left);
        for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
            sampled.entry(chunk.id).or_insert(now);
        }
        last_served.extend(plan.chunks.iter().map(|chunk| (chunk.group, now)));
    }
    Ok(())
}

/// Generates a token for each sequence that samples.
fn served(scheduler: &mut Scheduler, plan: &Plan, left: &mut BTreeMap<u64, usize>) {
    for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
        let rest = left.get_mut(&chunk.id).expect("a sequence that runs");
        *rest -= 1;
        if *rest == 0 {
            left.remove(&chunk.id);
            scheduler.remove(chunk.id);
        } else {
            scheduler.extend(chunk.id, Vec::new());
        }
    }
}
