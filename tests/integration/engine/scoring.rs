//! Scored prompts: the decoder's log-probabilities, in any batch and any chunks.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::engine::{EngineConfig, OutputStream, Request, SequenceError, TokenLogprobs};
use tombola::model::Dtype;
use tombola::registry::Lease;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{
    Running, config, drain, eventually, leases, registry, requests, start,
};
use crate::support::player::Player;

/// The mix of requests of the other tests. Most score parts of their prompts; some generate only
/// one token.
fn scored_requests(count: usize, leases: &[Lease]) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(9);
    let mut requests = requests(count, leases);
    for request in &mut requests {
        let len = if rng.random_bool(0.8) {
            request.prompt.len()
        } else {
            0
        };
        let mut at = 1;
        while at < len {
            let start = rng.random_range(at..len);
            let end = rng.random_range(start..len) + 1;
            request.scored.push(start..end);
            at = end + 1;
        }
        if rng.random_bool(0.3) {
            request.params.max_tokens = 1;
        }
    }
    requests
}

/// The log-probabilities of a prompt, which only the first output carries.
fn prompt_logprobs(stream: &mut OutputStream) -> Option<Vec<TokenLogprobs>> {
    let outputs = drain(stream);
    assert!(outputs[1..].iter().all(|o| o.prompt_logprobs.is_none()));
    outputs[0].prompt_logprobs.clone()
}

/// Asserts that `count` requests get bit-identical scores all at once and one by one. Returns the
/// engine that ran them at once.
fn same_scores(together: &EngineConfig, count: usize) -> Running {
    let (leases, _folder) = leases(3);
    let whole = EngineConfig {
        max_num_batched_tokens: 64,
        ..config()
    };
    let alone = start(Dtype::F32, &whole);
    let requests = || scored_requests(count, &leases);
    let positions = |request: &Request| request.scored.iter().map(Range::len).sum::<usize>();
    let asked: Vec<usize> = requests().iter().map(positions).collect();
    assert!(asked.iter().sum::<usize>() > 100 && asked.contains(&0));
    let run_alone = |request| prompt_logprobs(&mut alone.handle.submit(request).unwrap());
    let want: Vec<_> = requests().into_iter().map(run_alone).collect();
    let lengths = want
        .iter()
        .map(|scores| scores.as_ref().map_or(0, Vec::len));
    assert_eq!(lengths.collect::<Vec<_>>(), asked);
    let engine = start(Dtype::F32, together);
    let submit = |request| engine.handle.submit(request).unwrap();
    let mut streams: Vec<OutputStream> = requests().into_iter().map(submit).collect();
    let got: Vec<_> = streams.iter_mut().map(prompt_logprobs).collect();
    assert_eq!(got, want);
    engine
}

#[test]
fn neighbours_and_chunks_change_no_score() {
    same_scores(&config(), 40);
    let narrow = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 5,
        ..config()
    };
    same_scores(&narrow, 20);
}

#[test]
fn preempted_sequences_give_the_same_scores() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let tight = EngineConfig {
        max_num_batched_tokens: 12,
        kv_cache_bytes: 8 * base.block_bytes(),
        ..config()
    };
    let engine = same_scores(&tight, 40);
    let preemptions = engine.metrics.engine.preemptions.get();
    assert!(preemptions > 0, "nothing was preempted");
}

#[test]
fn scores_are_the_decoders_log_probabilities() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let engine = start(Dtype::F32, &config());
    let limit = engine.handle.limits().max_model_len;
    let mut rng = StdRng::seed_from_u64(3);
    // As long as the context: a scored prompt needs no room for an answer.
    let prompt: Vec<u32> = (0..limit).map(|_| rng.random_range(3..256)).collect();
    let mut player = Player::new(&base, 1, limit);
    let mut want = Vec::new();
    for pair in prompt.windows(2) {
        want.push(player.step(&[(0, &pair[..1])]).remove(0));
    }
    let request = Request {
        scored: vec![1..2, 2..limit],
        scored_top: 2,
        prompt: prompt.clone(),
        ..Request::default()
    };
    let got = prompt_logprobs(&mut engine.handle.submit(request).unwrap()).unwrap();
    assert_eq!(got.len(), want.len());
    for ((got, want), &token) in got.iter().zip(&want).zip(&prompt[1..]) {
        let (chosen, expected) = (got.chosen, want[token as usize]);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-5;
        assert!(
            near(chosen, expected),
            "{chosen}, the decoder says {expected}"
        );
        let likelier = want
            .iter()
            .filter(|&&other| other > expected + 1e-5)
            .count();
        let as_likely = want.iter().filter(|&&other| near(other, expected)).count();
        assert!((likelier + 1..=likelier + as_likely).contains(&got.rank));
        let [(first, best), (_, second)] = got.top[..] else {
            panic!("{:?}", got.top);
        };
        let largest = want.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(near(best, largest) && near(want[first as usize], best) && best >= second);
    }
}

#[test]
fn a_broken_model_ends_a_scored_sequence_at_its_first_chunk() {
    let (registry, _folder) = registry(1, 1e38, 1 << 24);
    let engine = start(Dtype::F32, &config());
    let request = Request {
        prompt: vec![5; 100],
        scored: vec![1..50, 50..100],
        ticket: Some(registry.lease(None, "t0").unwrap()),
        ..Request::default()
    };
    let mut stream = engine.handle.submit(request).unwrap();
    assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::NotFinite)));
    assert_eq!(stream.blocking_recv(), None);
    let steps = || engine.metrics.engine.num_steps();
    eventually("the step is counted", || steps() > 0);
    assert_eq!(steps(), 1);
}
