//! Shared blocks: hits, claims, and what a failed step leaves.

use super::*;
use crate::engine::blocks::BlockHash;

/// Hashes of the full blocks of `tokens` tokens, the first `shared` blocks as in every sequence and
/// the others as in those of the same `own`.
fn chain(shared: usize, own: u8, tokens: usize) -> Vec<BlockHash> {
    let hash = |at: usize| {
        let mut hash = [if at < shared { 0 } else { own }; 32];
        hash[0] = at as u8;
        BlockHash(hash)
    };
    (0..tokens / config().block_size).map(hash).collect()
}

/// A sequence of the base that shares all its blocks with its like.
fn prompt(id: SequenceId, tokens: usize) -> NewSequence {
    with_own(id, tokens, usize::MAX)
}

/// A sequence of the base that shares its first `shared` blocks.
fn with_own(id: SequenceId, tokens: usize, shared: usize) -> NewSequence {
    NewSequence {
        id,
        tokens,
        chain: chain(shared, id as u8, tokens),
        needed_from: usize::MAX,
        ..NewSequence::default()
    }
}

/// Runs a step, without generating tokens.
fn step(s: &mut ByTurns) -> Vec<Planned> {
    let plan = s.schedule();
    s.commit();
    planned(plan)
}

#[test]
fn a_prompt_resumes_at_its_first_miss_and_computes_its_last_token() {
    let mut s = ByTurns::new(config());
    s.scheduler.add(prompt(1, 12));
    assert_eq!(step(&mut s), [(1, 0, 12, true)]);
    s.remove(1);
    assert_eq!(s.cache_usage(), 0.0);
    for (id, tokens, hits) in [(2, 12, 8), (3, 13, 12), (4, 3, 0), (5, 30, 12)] {
        s.scheduler.add(prompt(id, tokens));
        assert_eq!(s.demand()[0].rows, tokens - hits);
        assert_eq!(step(&mut s), [(id, hits, tokens - hits, true)]);
        s.remove(id);
    }
}

#[test]
fn a_prompt_that_is_being_computed_is_not_computed_twice() {
    let mut s = ByTurns::new(config());
    for id in 1..4 {
        s.scheduler.add(with_own(id, 42, 10));
    }
    // One computes the blocks, in two chunks, and the others wait for them.
    assert_eq!(step(&mut s), [(1, 0, 32, false)]);
    assert_eq!((s.num_running(), s.demand()[0].rows), (1, 10));
    assert_eq!(step(&mut s), [(1, 32, 10, true)]);
    assert_eq!(step(&mut s), [(2, 40, 2, true), (3, 40, 2, true)]);
    // Ten blocks are shared, and each sequence has one of its own.
    assert_eq!(s.cache_usage(), 13.0 / 16.0);
}

#[test]
fn a_sequence_that_goes_leaves_its_claims_to_those_that_wait() {
    let mut s = ByTurns::new(config());
    s.scheduler.add(prompt(1, 42));
    s.scheduler.add(prompt(2, 42));
    assert_eq!(step(&mut s), [(1, 0, 32, false)]);
    s.remove(1);
    // It keeps what was computed.
    assert_eq!(step(&mut s), [(2, 32, 10, true)]);
    s.remove(2);
    assert!(s.claims.is_empty());
}

#[test]
fn a_failed_step_caches_nothing() {
    let mut s = ByTurns::new(config());
    s.scheduler.add(prompt(1, 42));
    step(&mut s);
    assert_eq!(planned(s.schedule()), [(1, 32, 10, true)]);
    // The step fails: its sequence is removed instead.
    s.remove(1);
    s.scheduler.add(prompt(2, 42));
    assert_eq!(step(&mut s), [(2, 32, 10, true)]);
}

#[test]
fn a_preempted_sequence_finds_its_blocks_again() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 6,
        ..config()
    });
    s.scheduler.add(with_own(1, 8, 0));
    s.scheduler.add(with_own(2, 15, 0));
    assert_eq!(step(&mut s), [(1, 0, 8, true), (2, 0, 15, true)]);
    s.extend(1);
    s.extend(2);
    // The first sequence takes the last block of the second.
    assert_eq!(step(&mut s), [(1, 8, 1, true)]);
    assert_eq!(s.preemptions(), 1);
    s.remove(1);
    assert_eq!(step(&mut s), [(2, 12, 4, true)]);
}

#[test]
fn rows_that_score_are_computed_until_the_prompt_is_scored() {
    let mut s = ByTurns::new(config());
    s.scheduler.add(prompt(1, 30));
    step(&mut s);
    s.remove(1);
    let needed_from = |id, row| NewSequence {
        needed_from: row,
        ..prompt(id, 30)
    };
    for (id, row, start) in [(2, 0, 0), (3, 11, 8), (4, 12, 12), (5, 29, 28)] {
        s.scheduler.add(needed_from(id, row));
        assert_eq!(step(&mut s), [(id, start, 30 - start, true)]);
        s.remove(id);
    }
    s.scheduler.add(needed_from(6, 0));
    step(&mut s);
    s.extend(6);
    let last = s.running.len() - 1;
    s.preempt(last);
    assert_eq!(step(&mut s), [(6, 28, 3, true)]);
}

#[test]
fn cached_blocks_of_nobody_make_way() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 8,
        ..config()
    });
    for id in 1..6 {
        s.scheduler.add(with_own(id, 30, 0));
        assert_eq!(step(&mut s), [(id, 0, 30, true)]);
        s.remove(id);
    }
    assert_eq!((s.cache_usage(), s.preemptions()), (0.0, 0));
    assert!(s.evictions() > 20, "{}", s.evictions());
}
