//! Pooled prompts: the decoder's hidden states, in any batch and any chunks.

use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::engine::{
    EngineConfig, EngineHandle, FinishReason, Output, Pooling, Request, SequenceError, TicketMode,
};
use tombola::model::Dtype;
use tombola::registry::Lease;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{Running, config, drain, leases, registry, requests, start};
use crate::support::environment::{device, golden_json, ids};
use crate::support::player::logprobs;

/// The mix of requests of the other tests; two of three are pooled.
fn mixed_requests(count: usize, leases: &[Lease]) -> Vec<Request> {
    let mut requests = requests(count, leases);
    for (i, request) in requests.iter_mut().enumerate() {
        request.pooling = [None, Some(Pooling::Last), Some(Pooling::Mean)][i / 4 % 3];
    }
    requests
}

/// What an engine answers, but for what was cached.
fn answer(engine: &EngineHandle, requests: Vec<Request>) -> Vec<Vec<Output>> {
    let submit = |request| engine.submit(request).unwrap();
    let mut streams: Vec<_> = requests.into_iter().map(submit).collect();
    let said = |output| Output {
        cached_tokens: None,
        ..output
    };
    streams
        .iter_mut()
        .map(|stream| drain(stream).into_iter().map(said).collect())
        .collect()
}

/// The only output of a pooled request.
fn pooled(engine: &EngineHandle, request: Request) -> Output {
    let last = *request.prompt.last().unwrap();
    let mut outputs = drain(&mut engine.submit(request).unwrap());
    let output = outputs.pop().unwrap();
    assert!(outputs.is_empty());
    assert_eq!(
        (output.token, output.finish),
        (last, Some(FinishReason::Length))
    );
    output
}

/// The vector of a prompt.
fn vector(engine: &EngineHandle, prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let request = Request {
        prompt: prompt.to_vec(),
        pooling: Some(pooling),
        ..Request::default()
    };
    pooled(engine, request).pooled.unwrap()
}

fn random_prompt(tokens: usize) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(3);
    (0..tokens).map(|_| rng.random_range(3..256)).collect()
}

/// Asserts that `count` requests get bit-identical answers all at once and one by one. Returns the
/// engine that ran them at once.
fn same_answers(together: &EngineConfig, count: usize) -> Running {
    let (leases, _folder) = leases(3);
    let whole = EngineConfig {
        max_num_batched_tokens: 64,
        enable_prefix_caching: false,
        ..config()
    };
    let alone = start(Dtype::F32, &whole);
    let one = |request| answer(&alone.handle, vec![request]).remove(0);
    let want: Vec<_> = mixed_requests(count, &leases)
        .into_iter()
        .map(one)
        .collect();
    let engine = start(Dtype::F32, together);
    let got = answer(&engine.handle, mixed_requests(count, &leases));
    assert_eq!(got, want);
    engine
}

#[test]
fn neighbours_and_chunks_change_no_vector() {
    same_answers(&config(), 40);
    let narrow = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 5,
        ..config()
    };
    same_answers(&narrow, 24);
}

#[test]
fn preempted_sequences_give_the_same_vectors() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let tight = EngineConfig {
        max_num_batched_tokens: 12,
        kv_cache_bytes: 8 * base.block_bytes(),
        ..config()
    };
    let engine = same_answers(&tight, 40);
    let preemptions = engine.metrics.engine.preemptions.get();
    assert!(preemptions > 0, "nothing was preempted");
}

/// The head turns the vector of a prompt into the log-probabilities after it, which transformers
/// computed.
#[test]
fn the_last_hidden_state_is_that_of_transformers() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let engine = start(Dtype::F32, &config());
    let golden = golden_json(&format!("tiny/{LLAMA}/golden.json"));
    let cases = golden["cases"].as_array().expect("cases");
    for case in cases {
        let prompt = ids(&case["prompt_ids"]);
        let hidden = vector(&engine.handle, &prompt, Pooling::Last);
        let size = hidden.len();
        assert_eq!(size, engine.handle.limits().hidden_size);
        let hidden = Tensor::from_vec(hidden, (1, size), base.device()).unwrap();
        let logits = base.decoder.weights().head.forward_f32(&hidden).unwrap();
        let got = logprobs(&logits).remove(0);
        let want: Vec<f32> = serde_json::from_value(case["logprobs_last"].clone()).unwrap();
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f32::max);
        assert!(worst <= 1e-3, "{worst}");
    }
}

#[test]
fn the_mean_is_that_of_the_last_hidden_states_of_all_prefixes() {
    let engine = start(Dtype::F32, &config());
    // As long as the context: a vector needs no room for an answer.
    let prompt = random_prompt(engine.handle.limits().max_model_len.min(200));
    let rows: Vec<Vec<f32>> = (1..=prompt.len())
        .map(|len| vector(&engine.handle, &prompt[..len], Pooling::Last))
        .collect();
    let got = vector(&engine.handle, &prompt, Pooling::Mean);
    for (i, &got) in got.iter().enumerate() {
        let sum: f64 = rows.iter().map(|row| f64::from(row[i])).sum();
        let want = (sum / rows.len() as f64) as f32;
        if device().is_gpu() {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        } else {
            assert_eq!(got.to_bits(), want.to_bits());
        }
    }
}

#[test]
fn only_the_last_hidden_state_is_found_by_the_prefix_cache() {
    let engine = start(Dtype::F32, &config());
    let ask = |pooling| {
        let request = Request {
            prompt: random_prompt(100),
            pooling: Some(pooling),
            ..Request::default()
        };
        pooled(&engine.handle, request)
    };
    let first = ask(Pooling::Last);
    assert_eq!(first.cached_tokens, Some(0));
    let again = ask(Pooling::Last);
    assert!(again.cached_tokens > Some(0));
    assert_eq!(again.pooled, first.pooled);
    assert_eq!(ask(Pooling::Mean).cached_tokens, Some(0));
}

#[test]
fn a_ticket_changes_the_vector_applied_or_overlaid() {
    let (leases, _folder) = leases(1);
    let in_mode = |ticket_mode, ticket: Option<&Lease>, pooling| {
        let engine = start(
            Dtype::F32,
            &EngineConfig {
                ticket_mode,
                ..config()
            },
        );
        let request = Request {
            prompt: random_prompt(40),
            pooling: Some(pooling),
            ticket: ticket.cloned(),
            ..Request::default()
        };
        pooled(&engine.handle, request).pooled.unwrap()
    };
    let distance = |a: &[f32], b: &[f32]| {
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f32::max)
    };
    for pooling in [Pooling::Last, Pooling::Mean] {
        let base = in_mode(TicketMode::Apply, None, pooling);
        let applied = in_mode(TicketMode::Apply, Some(&leases[0]), pooling);
        let overlaid = in_mode(TicketMode::Overlay, Some(&leases[0]), pooling);
        assert!(distance(&base, &applied) > 1e-2);
        assert!(distance(&applied, &overlaid) < 1e-3);
    }
}

#[test]
fn a_broken_model_gives_no_vector() {
    let (registry, _folder) = registry(1, 1e38, 1 << 24);
    let engine = start(Dtype::F32, &config());
    for pooling in [Pooling::Last, Pooling::Mean] {
        let request = Request {
            prompt: vec![5; 100],
            pooling: Some(pooling),
            ticket: Some(registry.lease(None, "t0").unwrap()),
            ..Request::default()
        };
        let mut stream = engine.handle.submit(request).unwrap();
        assert_eq!(stream.blocking_recv(), Some(Err(SequenceError::NotFinite)));
        assert_eq!(stream.blocking_recv(), None);
    }
}
