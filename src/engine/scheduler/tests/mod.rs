//! Tests of the scheduler.

mod fairness;
mod prefix;
mod simulation;

use std::ops::{Deref, DerefMut};

use super::*;
use crate::engine::account::Account;
use crate::engine::costs::Load;
use crate::engine::policy::{TurnLimits, Turns};
use crate::ticket::Digest;

const BASE: Group = None;

fn ticket(n: u8) -> Group {
    Some(Digest([n; 32]))
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 32,
        blocks: 16,
        block_size: 4,
    }
}

fn tenant(n: u64) -> Account {
    Account::Tenant(format!("tenant-{n}").parse().unwrap())
}

const TURN_STEPS: usize = 3;

/// A scheduler whose groups take turns.
struct ByTurns {
    scheduler: Scheduler,
    turns: Turns,
}

impl ByTurns {
    fn new(config: SchedulerConfig) -> Self {
        let limits = TurnLimits {
            steps: TURN_STEPS,
            tokens: config.max_num_batched_tokens,
        };
        Self {
            scheduler: Scheduler::new(config),
            turns: Turns::new(limits),
        }
    }

    /// Queues a sequence without a tenant.
    fn add(&mut self, id: SequenceId, group: Group, tokens: usize) {
        self.add_for(Account::Group(group), 0, id, group, tokens);
    }

    /// Queues a sequence of an account.
    fn add_for(
        &mut self,
        account: Account,
        priority: i32,
        id: SequenceId,
        group: Group,
        tokens: usize,
    ) {
        self.scheduler.add(NewSequence {
            id,
            group,
            account,
            priority,
            tokens,
            ..NewSequence::default()
        });
    }

    /// Counts a generated token.
    fn extend(&mut self, id: SequenceId) {
        self.scheduler.extend(id, Vec::new());
    }

    /// Plans the step of the next turn; `None` if there is nothing to do.
    fn schedule(&mut self) -> Option<Plan> {
        loop {
            self.make_room();
            let loads: Vec<Load> = self.demand().iter().map(load).collect();
            let group = self.turns.next(&loads)?;
            if let Some(plan) = self.scheduler.schedule(&Groups::One(group)) {
                self.turns.record_step(&plan.rows_by_group());
                return Some(plan);
            }
        }
    }

    /// Runs the next step and generates a token for every sequence that samples.
    fn step(&mut self) -> Option<Plan> {
        let plan = self.schedule()?;
        for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
            self.extend(chunk.id);
        }
        Some(plan)
    }

    /// Runs the next step, and returns the group whose turn it was.
    fn turn(&mut self) -> Group {
        match self.step().unwrap().groups {
            Groups::One(group) => group,
            _ => unreachable!("each turn is of one group"),
        }
    }
}

impl Deref for ByTurns {
    type Target = Scheduler;

    fn deref(&self) -> &Scheduler {
        &self.scheduler
    }
}

impl DerefMut for ByTurns {
    fn deref_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }
}

fn load(demand: &Demand) -> Load {
    Load {
        group: demand.group,
        rows: demand.rows,
        nonzeros: 0,
        has_layout: true,
        urgent: demand.urgent,
    }
}

/// A chunk of the base's group without its block table: id, start, length, whether it samples.
type Planned = (u64, usize, usize, bool);

fn planned(plan: Option<Plan>) -> Vec<Planned> {
    let chunk = |chunk: Chunk| {
        assert_eq!(chunk.group, BASE);
        (chunk.id, chunk.start, chunk.len, chunk.samples)
    };
    plan.unwrap().chunks.into_iter().map(chunk).collect()
}

fn is_running(s: &Scheduler, id: u64) -> bool {
    s.running.iter().any(|entry| entry.id == id)
}

#[test]
fn a_long_prompt_is_computed_in_chunks() {
    let mut s = ByTurns::new(config());
    s.add(1, BASE, 40);
    assert_eq!(planned(s.step()), [(1, 0, 32, false)]);
    assert_eq!(planned(s.step()), [(1, 32, 8, true)]);
    assert_eq!(planned(s.step()), [(1, 40, 1, true)]);
    s.remove(1);
    assert!(s.is_idle() && s.schedule().is_none());
    assert_eq!(s.cache_usage(), 0.0);
}

#[test]
fn decoding_goes_before_prompts() {
    let mut s = ByTurns::new(config());
    s.add(1, BASE, 2);
    s.step();
    s.add(2, BASE, 40);
    assert_eq!(planned(s.step()), [(1, 2, 1, true), (2, 0, 31, false)]);
}

#[test]
fn groups_take_turns() {
    let mut s = ByTurns::new(config());
    s.add(1, BASE, 2);
    s.add(2, ticket(1), 2);
    s.add(3, ticket(2), 2);
    let groups: Vec<Group> = (0..12).map(|_| s.turn()).collect();
    let three = |group| [group; 3];
    let want = [three(BASE), three(ticket(1)), three(ticket(2)), three(BASE)].concat();
    assert_eq!(groups, want);
}

#[test]
fn all_groups_run_together() {
    let mut s = ByTurns::new(config());
    s.add(1, ticket(2), 2);
    s.add(2, BASE, 3);
    s.add(3, ticket(2), 2);
    s.add(4, ticket(1), 2);
    // No slot is left for this one.
    s.add(5, BASE, 2);
    let plan = s.scheduler.schedule(&Groups::All).unwrap();
    let ids: Vec<u64> = plan.chunks.iter().map(|chunk| chunk.id).collect();
    assert_eq!((ids, plan.groups), (vec![2, 4, 1, 3], Groups::All));
    assert!(plan.chunks.iter().all(|chunk| chunk.samples));
    (1..5).for_each(|id| s.extend(id));
    let plan = s.scheduler.schedule(&Groups::All).unwrap();
    assert!(plan.chunks.iter().all(|chunk| chunk.len == 1) && plan.chunks.len() == 4);
}

#[test]
fn a_flood_of_prompts_lets_another_ticket_in() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 1000,
        ..config()
    });
    (0..20).for_each(|id| s.add(id, ticket(1), 60));
    s.scheduler.schedule(&Groups::All).unwrap();
    s.add(99, ticket(2), 10);
    // Twenty prompts of two steps each came first, and all four slots are taken.
    let mut first = None;
    for step in 1..10 {
        s.make_room();
        let plan = s.scheduler.schedule(&Groups::All).unwrap();
        if plan.chunks.iter().any(|chunk| chunk.id == 99) {
            first = Some(step);
            break;
        }
        let ended = plan.chunks.iter().filter(|chunk| chunk.samples);
        ended.for_each(|chunk| s.remove(chunk.id));
    }
    assert!(first.is_some_and(|step| step <= 3), "{first:?}");
}

#[test]
fn a_group_alone_keeps_its_turn() {
    let mut s = ByTurns::new(config());
    s.add(1, ticket(1), 2);
    assert!((0..10).all(|_| s.turn() == ticket(1)));
    // A turn restarts if no other group waits; a newcomer waits at most until its end.
    s.add(2, BASE, 2);
    let soon = (0..=TURN_STEPS).any(|_| s.turn() == BASE);
    assert!(soon);
}

#[test]
fn the_youngest_is_preempted_and_computed_again() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 4,
        ..config()
    });
    s.add(1, BASE, 8);
    s.add(2, BASE, 8);
    assert_eq!(planned(s.step()), [(1, 0, 8, true), (2, 0, 8, true)]);
    // Both need a third block, but no block is free.
    assert_eq!(planned(s.step()), [(1, 8, 1, true)]);
    assert_eq!(
        (s.num_running(), s.num_waiting(), s.preemptions()),
        (1, 1, 1)
    );
    s.remove(1);
    assert_eq!(planned(s.step()), [(2, 0, 9, true)]);
}

#[test]
fn young_sequences_do_not_use_up_the_blocks_that_an_old_one_waits_for() {
    let mut s = ByTurns::new(config());
    s.add(1, BASE, 32);
    s.step();
    // 8 blocks are left; the next sequence needs 9, and a small one of another ticket comes after.
    s.add(2, ticket(1), 36);
    s.add(3, ticket(2), 4);
    for _ in 0..8 {
        assert_eq!(s.turn(), BASE);
    }
    s.remove(1);
    assert_eq!(s.turn(), ticket(1));
}

#[test]
fn a_long_prompt_takes_one_chunk_per_turn() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 1000,
        ..config()
    });
    s.add(1, BASE, 2);
    s.step();
    s.add(2, ticket(1), 200);
    let groups: Vec<Group> = (0..12).map(|_| s.turn()).collect();
    // A turn of decoding is three steps, a turn of the prompt is one: both are short.
    let prompts = groups.iter().filter(|group| **group == ticket(1)).count();
    assert!((2..=4).contains(&prompts), "{groups:?}");
    assert!(
        groups.windows(2).all(|pair| pair != [ticket(1), ticket(1)]),
        "{groups:?}"
    );
}

#[test]
fn a_flood_of_one_ticket_yields_a_slot_to_another() {
    let mut s = ByTurns::new(config());
    (0..20).for_each(|id| s.add(id, ticket(1), 4));
    s.step();
    assert_eq!(s.num_running(), config().max_num_seqs);
    // All slots are taken, and nineteen others wait longer.
    s.add(99, ticket(2), 4);
    let steps = 0..=TURN_STEPS;
    let groups: Vec<Group> = steps.map(|_| s.turn()).collect();
    assert!(groups.contains(&ticket(2)), "{groups:?}");
    assert!(is_running(&s, 99) && !is_running(&s, 3));
    assert_eq!(
        (s.num_running(), s.preemptions()),
        (config().max_num_seqs, 1)
    );
    // Its second sequence preempts no other: it waits for a free slot.
    s.add(100, ticket(2), 4);
    (0..8).for_each(|_| drop(s.step()));
    assert!(!is_running(&s, 100));
    // The slot goes to the group with fewer running sequences, though the flood waits longer.
    s.remove(0);
    (0..8).for_each(|_| drop(s.step()));
    assert!(is_running(&s, 100) && !is_running(&s, 3));
}
