//! Random sequences through the scheduler, with its invariants checked after each step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A sequence of the simulation: prompt tokens, tokens to generate, group, step of arrival.
type SimulatedRequest = (usize, usize, u8, usize);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn everything_ends_and_no_block_is_shared(
        jobs in prop::collection::vec((1usize..40, 1usize..20, 0u8..4, 0usize..30), 1..25),
        blocks in 15usize..40,
        cancel in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        together in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        simulate(&jobs, SchedulerConfig { blocks, ..config() }, &cancel, &together)?;
    }
}

fn simulate(
    jobs: &[SimulatedRequest],
    config: SchedulerConfig,
    cancel: &[prop::sample::Index],
    together: &[bool],
) -> Result<(), TestCaseError> {
    let mut s = ByTurns::new(config);
    // id -> (computed so far, known tokens, tokens left to generate)
    let mut live: BTreeMap<u64, (usize, usize, usize)> = BTreeMap::new();
    let mut ended = 0;
    for now in 0.. {
        prop_assert!(now < 20_000, "{} of {} never end", live.len(), jobs.len());
        for (id, job) in (1u64..).zip(jobs).filter(|(_, job)| job.3 == now) {
            s.add(id, (job.2 > 0).then_some(Digest([job.2; 32])), job.0);
            live.insert(id, (0, job.0, job.1));
        }
        if let Some(index) = cancel.get(now / 7).filter(|_| now % 7 == 6)
            && !live.is_empty()
        {
            let id = *live.keys().nth(index.index(live.len())).unwrap();
            s.remove(id);
            live.remove(&id);
            ended += 1;
        }
        // The policy may change between all groups and one group at any step.
        let plan = if together[now % together.len()] {
            s.scheduler.schedule(&Groups::All)
        } else {
            s.schedule()
        };
        let Some(plan) = plan else {
            prop_assert!(live.is_empty());
            if ended == jobs.len() {
                break;
            }
            continue;
        };
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.len).sum();
        prop_assert!(tokens > 0 && tokens <= config.max_num_batched_tokens);
        prop_assert!(s.num_running() <= config.max_num_seqs);
        check_blocks(&s, &config)?;
        check_groups(&plan)?;
        check_tables(&s, &plan)?;
        for chunk in plan.chunks {
            let (computed, known, left) = live.get_mut(&chunk.id).unwrap();
            // Chunks follow one another, or begin again after a preemption.
            prop_assert!(chunk.start == *computed || chunk.start == 0);
            *computed = chunk.start + chunk.len;
            prop_assert_eq!(chunk.samples, *computed == *known);
            if chunk.samples {
                *known += 1;
                *left -= 1;
                if *left == 0 {
                    live.remove(&chunk.id);
                    s.remove(chunk.id);
                    ended += 1;
                } else {
                    s.extend(chunk.id);
                }
            }
        }
    }
    prop_assert_eq!(s.blocks.free(), config.blocks);
    prop_assert!(s.served.is_empty());
    Ok(())
}

/// A step holds only chunks of its groups, and the chunks of a group are adjacent.
fn check_groups(plan: &Plan) -> Result<(), TestCaseError> {
    let groups: Vec<Group> = plan.chunks.iter().map(|chunk| chunk.group).collect();
    prop_assert!(groups.is_sorted());
    prop_assert!(groups.iter().all(|group| plan.groups.contain(*group)));
    Ok(())
}

/// Each chunk carries its sequence's block table, which holds all positions up to its last.
fn check_tables(s: &Scheduler, plan: &Plan) -> Result<(), TestCaseError> {
    for chunk in &plan.chunks {
        let entry = s.running.iter().find(|entry| entry.id == chunk.id);
        prop_assert_eq!(Some(&chunk.blocks), entry.map(|entry| &entry.blocks));
        prop_assert!(chunk.blocks.len() * s.config.block_size >= chunk.start + chunk.len);
    }
    Ok(())
}

/// No block has two owners, and every computed token has a slot.
fn check_blocks(s: &Scheduler, config: &SchedulerConfig) -> Result<(), TestCaseError> {
    let mut used: Vec<u32> = s.running.iter().flat_map(|e| e.blocks.to_vec()).collect();
    let count = used.len();
    used.sort_unstable();
    used.dedup();
    prop_assert_eq!(used.len(), count);
    prop_assert_eq!(count + s.blocks.free(), config.blocks);
    for entry in &s.running {
        prop_assert!(entry.blocks.len() * config.block_size >= entry.computed);
    }
    prop_assert!(s.waiting.iter().all(|entry| entry.blocks.is_empty()));
    Ok(())
}

proptest! {
    /// Each of G active groups is served within G turns.
    #[test]
    fn no_group_starves(groups in 2u8..5) {
        let mut s = ByTurns::new(SchedulerConfig { blocks: 1000, max_num_seqs: 8, ..config() });
        for n in 0..groups {
            s.add(u64::from(n), ticket(n), 3);
        }
        let mut last = vec![0; groups.into()];
        for now in 1..200 {
            let Some(Digest([n, ..])) = s.turn() else { panic!() };
            last[usize::from(n)] = now;
            let oldest = now - last.iter().min().unwrap();
            prop_assert!(oldest <= usize::from(groups) * TURN_STEPS, "{last:?}");
        }
    }
}
