//! Prefix cache: requests share blocks within their scope, and no output depends on what is cached.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::access::Tenant;
use tombola::engine::{EngineConfig, Output, OutputStream, Request, SamplingParams};
use tombola::model::{BLOCK, Dtype};
use tombola::registry::Lease;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{Running, config, drain, eventually, leases, overlay_config, start};

/// Prompts that begin alike, some of them equal, under tickets, tenants and salts; some are scored.
fn mix(seed: u64, count: usize, leases: &[Lease]) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut ids =
        |count: usize| -> Vec<u32> { (0..count).map(|_| rng.random_range(3..256)).collect() };
    let families: Vec<Vec<u32>> = (0..3).map(|_| ids(90)).collect();
    let mut requests: Vec<Request> = Vec::new();
    while requests.len() < count {
        let family = &families[rng.random_range(0..families.len())];
        let mut prompt = family[..rng.random_range(1..family.len())].to_vec();
        prompt.extend((0..rng.random_range(0..20)).map(|_| rng.random_range(3..256)));
        let scored = rng.random_bool(0.2) && prompt.len() > 2;
        let first = rng.random_range(1..prompt.len().max(2));
        let ticket = leases.get(rng.random_range(0..=leases.len())).cloned();
        let tenant = rng.random_bool(0.3).then(|| "acme".parse().unwrap());
        let cache_salt = rng.random_bool(0.1).then(|| "salt".into());
        for _ in 0..rng.random_range(1..4) {
            let params = SamplingParams {
                max_tokens: rng.random_range(1..24),
                temperature: if rng.random_bool(0.5) { 0.0 } else { 0.9 },
                seed: Some(rng.random()),
                logprobs: rng.random_bool(0.5).then_some(2),
                ignore_eos: true,
                ..Default::default()
            };
            requests.push(Request {
                prompt: prompt.clone(),
                params,
                ticket: ticket.clone(),
                scored: if scored {
                    std::iter::once(first..prompt.len()).collect()
                } else {
                    Vec::new()
                },
                tenant: tenant.clone(),
                cache_salt: cache_salt.clone(),
                ..Request::default()
            });
        }
    }
    requests
}

/// What an output says of the model: all but what was cached.
fn said(outputs: Vec<Output>) -> Vec<Output> {
    let forget = |output| Output {
        cached_tokens: None,
        ..output
    };
    outputs.into_iter().map(forget).collect()
}

/// Asserts that requests get the same outputs, to the bit, one by one without a cache and all at
/// once under a configuration. Each fifth stream is dropped early. Returns the engine.
fn same_outputs(dtype: Dtype, seed: u64, together: &EngineConfig) -> Running {
    let (leases, _folder) = leases(2);
    let alone = EngineConfig {
        enable_prefix_caching: false,
        ticket_mode: together.ticket_mode,
        ..config()
    };
    let alone = start(dtype, &alone);
    let run_alone = |request| said(drain(&mut alone.handle.submit(request).unwrap()));
    let want: Vec<Vec<Output>> = mix(seed, 60, &leases).into_iter().map(run_alone).collect();
    let engine = start(dtype, together);
    let submit = |request| engine.handle.submit(request).unwrap();
    let streams: Vec<OutputStream> = mix(seed, 60, &leases).into_iter().map(submit).collect();
    for (at, (mut stream, mut want)) in streams.into_iter().zip(want).enumerate() {
        let got = if at % 5 == 4 {
            want.truncate(at % 3);
            let outputs = std::iter::from_fn(|| stream.blocking_recv());
            outputs.take(want.len()).map(Result::unwrap).collect()
        } else {
            drain(&mut stream)
        };
        assert_eq!(said(got), want, "request {at} of mix {seed}");
    }
    eventually("all blocks are free", || {
        engine.metrics.engine.kv_cache_usage.get() == 0.0
    });
    engine
}

/// Blocks for one long sequence and little more.
fn tight(config: EngineConfig) -> EngineConfig {
    EngineConfig {
        kv_cache_bytes: 11 * load_tiny(LLAMA, Dtype::F32).block_bytes(),
        ..config
    }
}

#[test]
fn no_output_depends_on_what_is_cached() {
    for seed in 0..3 {
        let engine = same_outputs(Dtype::F32, seed, &overlay_config());
        assert!(engine.count("prefix_cache_hits_total") > 300);
    }
    same_outputs(Dtype::Bf16, 3, &overlay_config());
    same_outputs(Dtype::F32, 4, &config());
}

#[test]
fn no_output_depends_on_the_cache_while_blocks_are_scarce() {
    let mut preemptions = 0;
    for seed in 5..8 {
        let narrow = EngineConfig {
            max_num_seqs: 5,
            max_num_batched_tokens: 7,
            ..overlay_config()
        };
        for config in [overlay_config(), narrow] {
            let engine = same_outputs(Dtype::F32, seed, &tight(config));
            assert!(engine.count("prefix_cache_hits_total") > 0);
            assert!(engine.count("prefix_cache_evictions_total") > 10);
            preemptions += engine.count("num_preemptions_total");
        }
    }
    assert!(preemptions > 0, "nothing was preempted");
}

#[test]
fn without_the_cache_nothing_is_shared_or_counted() {
    let off = EngineConfig {
        enable_prefix_caching: false,
        ..overlay_config()
    };
    let engine = same_outputs(Dtype::F32, 9, &off);
    assert_eq!(engine.count("prefix_cache_queries_total"), 0);
    assert_eq!(engine.count("prefix_cache_hits_total"), 0);
    let engine = same_outputs(Dtype::F32, 9, &tight(off));
    assert_eq!(engine.count("prefix_cache_evictions_total"), 0);
}

/// A greedy request of these tokens for `max_tokens` tokens.
fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        params: SamplingParams {
            max_tokens,
            temperature: 0.0,
            ignore_eos: true,
            ..Default::default()
        },
        ..Request::default()
    }
}

/// The tokens of a request's answer, and the tokens of its prompt that were cached.
fn ask(engine: &Running, request: Request) -> (Vec<u32>, usize) {
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    assert!(
        outputs[1..]
            .iter()
            .all(|output| output.cached_tokens.is_none())
    );
    let tokens = outputs.iter().map(|output| output.token).collect();
    (tokens, outputs[0].cached_tokens.unwrap())
}

fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| 3 + at * 7 % 250).collect()
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let engine = start(Dtype::F32, &overlay_config());
    let requests = (0..4).map(|_| greedy(&prompt(200), 4)).collect();
    let streams = engine.handle.submit_all(requests).unwrap();
    let cached: Vec<usize> = streams
        .into_iter()
        .map(|mut stream| drain(&mut stream)[0].cached_tokens.unwrap())
        .collect();
    assert_eq!(cached, [0, 192, 192, 192]);
    assert_eq!(engine.count("prefix_cache_queries_total"), 800);
    assert_eq!(engine.count("prefix_cache_hits_total"), 3 * 192);
}

#[test]
fn the_next_turn_of_a_chat_finds_prompt_and_answer() {
    let engine = start(Dtype::F32, &overlay_config());
    let mut chat = prompt(40);
    let mut computed = 0;
    for turn in 0..4 {
        let (answer, cached) = ask(&engine, greedy(&chat, 40));
        assert_eq!(cached, computed / BLOCK * BLOCK);
        chat.extend(answer);
        // The last token of the answer was never computed.
        computed = chat.len() - 1;
        chat.extend([5 + turn; 3]);
    }
}

#[test]
fn only_requests_of_one_scope_share_blocks() {
    let (leases, _folder) = leases(2);
    let engine = start(Dtype::F32, &overlay_config());
    let tenant = |name: &str| -> Option<Tenant> { Some(name.parse().unwrap()) };
    let scope = |tenant, salt: Option<&str>, ticket: Option<&Lease>| Request {
        tenant,
        cache_salt: salt.map(Into::into),
        ticket: ticket.cloned(),
        ..greedy(&prompt(100), 2)
    };
    let scopes = || {
        [
            scope(None, None, None),
            scope(tenant("acme"), None, None),
            scope(tenant("evil"), None, None),
            scope(tenant("evil"), Some("acme"), None),
            scope(None, Some("acme"), None),
            scope(None, None, Some(&leases[0])),
            scope(None, None, Some(&leases[1])),
            scope(tenant("acme"), None, Some(&leases[1])),
        ]
    };
    let cached = |requests: [Request; 8]| requests.map(|request| ask(&engine, request).1);
    assert_eq!(cached(scopes()), [0; 8]);
    assert_eq!(cached(scopes()), [96; 8]);
}

#[test]
fn rows_that_score_are_computed_and_the_ones_before_are_not() {
    let engine = start(Dtype::F32, &overlay_config());
    let scored = |from: usize| Request {
        scored: std::iter::once(from..100).collect(),
        ..greedy(&prompt(100), 1)
    };
    assert_eq!(ask(&engine, scored(50)).1, 0);
    for (from, cached) in [(1, 0), (16, 0), (17, 16), (64, 48), (65, 64), (99, 96)] {
        assert_eq!(ask(&engine, scored(from)).1, cached, "scored from {from}");
    }
}

#[test]
fn a_cancelled_sequence_leaves_what_it_computed() {
    let engine = start(Dtype::F32, &overlay_config());
    let stream = engine.handle.submit(greedy(&prompt(400), 1)).unwrap();
    eventually("three chunks are computed", || {
        engine.metrics.engine.num_steps() >= 3
    });
    drop(stream);
    let (_, cached) = ask(&engine, greedy(&prompt(400), 1));
    assert!(cached >= 3 * 24 / BLOCK * BLOCK, "{cached}");
}
