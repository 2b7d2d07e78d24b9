//! The engine as its callers see it: the same tokens whatever the company, tickets that do not
//! touch each other, cancellation, preemption, and an end rather than a wrong answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tombola::engine::{
    EngineConfig, EngineHandle, EngineThread, FinishReason, Output, OutputStream, Request,
    SamplingParams, spawn,
};
use tombola::metrics::Metrics;
use tombola::model::{BLOCK, Dtype};
use tombola::registry::{Lease, Registry, RegistryOptions};
use tombola::ticket::{BaseManifest, Deltas, Metadata, TensorDelta, Ticket};

use crate::common::{Player, load_tiny};

const MODEL: &str = "llama-untied";

fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 24,
        max_queue: 1000,
        kv_cache_bytes: 1 << 20,
        threads: 2,
        end_tokens: vec![2],
    }
}

struct Running {
    handle: EngineHandle,
    metrics: Arc<Metrics>,
    loaded: tombola::ticket::Digest,
    _thread: EngineThread,
}

fn start(dtype: Dtype, config: &EngineConfig) -> Running {
    let base = load_tiny(MODEL, dtype);
    let loaded = base.loaded_digest;
    let metrics = Arc::new(Metrics::new(512).unwrap());
    let (handle, thread) = spawn(base, config, Arc::clone(&metrics)).unwrap();
    Running {
        handle,
        metrics,
        loaded,
        _thread: thread,
    }
}

/// A ticket that moves every answer: large deltas on a tenth of the MLP weights.
fn write_ticket(base: &BaseManifest, seed: u64, path: &Path) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tensors = BTreeMap::new();
    for (name, parameter) in &base.parameters {
        if parameter.adaptable && name.contains("mlp") {
            let shape = [parameter.shape[0], parameter.shape[1]];
            let kept = (0..shape[0] * shape[1]).filter(|_| rng.random_bool(0.1));
            let kept: Vec<usize> = kept.collect();
            let deltas = kept
                .iter()
                .map(|_| bf16::from_f32(rng.random_range(-0.5..0.5)))
                .collect();
            let delta = TensorDelta::from_flat(shape, &kept, Deltas::Bf16(deltas)).unwrap();
            tensors.insert(name.clone(), delta);
        }
    }
    let metadata = Metadata {
        name: "random".to_owned(),
        base_name: base.name.clone(),
        base_fingerprint: base.fingerprint,
        density: 0.1,
        license: None,
        training: None,
    };
    std::fs::write(path, Ticket::encode(&metadata, &tensors).unwrap()).unwrap();
}

/// Leases of `count` random tickets.
fn leases(count: usize) -> (Vec<Lease>, tempfile::TempDir) {
    let base = load_tiny(MODEL, Dtype::F32).manifest;
    let folder = tempfile::tempdir().unwrap();
    for i in 0..count {
        write_ticket(
            &base,
            i as u64,
            &folder.path().join(format!("t{i}.safetensors")),
        );
    }
    let options = RegistryOptions {
        max_ticket_bytes: 1 << 20,
        memory_budget: 1 << 24,
        allow_foreign_base: false,
    };
    let opened = Registry::open(folder.path(), base, options).unwrap();
    assert!(opened.refused.is_empty());
    let lease = |i| opened.registry.lease(&format!("t{i}")).unwrap();
    ((0..count).map(lease).collect(), folder)
}

fn drain(stream: &mut OutputStream) -> Vec<Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut all = Vec::new();
        while let Some(output) = stream.recv().await {
            all.push(output);
        }
        all
    })
}

fn tokens(stream: &mut OutputStream) -> Vec<u32> {
    let outputs = drain(stream);
    let last = outputs.last().expect("an output");
    assert!(last.finish.is_some(), "the engine gave up");
    assert!(
        outputs[..outputs.len() - 1]
            .iter()
            .all(|output| output.finish.is_none())
    );
    outputs.iter().map(|output| output.token).collect()
}

/// A mixed lot of requests: greedy and sampled, short and long, under each ticket and none.
fn requests(count: usize, leases: &[Lease]) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(4);
    let mut request = |i: usize| Request {
        prompt: (0..rng.random_range(1..60))
            .map(|_| rng.random_range(3..256))
            .collect(),
        params: SamplingParams {
            max_tokens: rng.random_range(1..30),
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.9 },
            top_p: 0.95,
            repetition_penalty: if i.is_multiple_of(3) { 1.2 } else { 1.0 },
            seed: Some(i as u64),
            ignore_eos: !i.is_multiple_of(5),
            ..Default::default()
        },
        ticket: leases.get(i % (leases.len() + 1)).cloned(),
    };
    (0..count).map(&mut request).collect()
}

/// One after the other, then all at once: the tokens must be the same.
fn same_tokens(dtype: Dtype, together: &EngineConfig, count: usize) -> Running {
    let (leases, _folder) = leases(3);
    let alone = start(dtype, &config());
    let run_alone = |request| tokens(&mut alone.handle.submit(request).unwrap());
    let want: Vec<Vec<u32>> = requests(count, &leases)
        .into_iter()
        .map(run_alone)
        .collect();
    let engine = start(dtype, together);
    let submit = |request| engine.handle.submit(request).unwrap();
    let streams: Vec<OutputStream> = requests(count, &leases).into_iter().map(submit).collect();
    let got: Vec<Vec<u32>> = streams
        .into_iter()
        .map(|mut stream| tokens(&mut stream))
        .collect();
    assert_eq!(got, want);
    engine
}

#[test]
fn company_changes_no_token_and_swaps_leave_the_base_as_loaded() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let engine = same_tokens(dtype, &config(), 40);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let digest = runtime.block_on(engine.handle.base_digest());
        assert_eq!(digest, Some(engine.loaded));
        assert!(
            engine
                .metrics
                .render()
                .unwrap()
                .contains("tombola_ticket_swap_seconds_count")
        );
    }
}

#[test]
fn preempted_sequences_give_the_same_tokens() {
    let base = load_tiny(MODEL, Dtype::F32);
    let tight = EngineConfig {
        kv_cache_bytes: 10 * base.block_bytes(),
        ..config()
    };
    let engine = same_tokens(Dtype::F32, &tight, 30);
    assert!(
        engine.metrics.preemptions.get() > 0,
        "nothing was preempted"
    );
    assert_eq!(engine.handle.limits().max_model_len, 10 * BLOCK);
}

#[test]
fn greedy_tokens_are_the_decoders() {
    let base = load_tiny(MODEL, Dtype::F32);
    let prompt = vec![5, 6, 7, 8];
    let want = Player::new(&base, 1, 40).greedy(&prompt, 12);
    let engine = start(Dtype::F32, &config());
    let params = SamplingParams {
        max_tokens: 12,
        temperature: 0.0,
        ignore_eos: true,
        logprobs: Some(2),
        ..Default::default()
    };
    let request = Request {
        prompt,
        params,
        ticket: None,
    };
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    assert_eq!(outputs.iter().map(|o| o.token).collect::<Vec<_>>(), want);
    assert_eq!(outputs[11].finish, Some(FinishReason::Length));
    for output in outputs {
        let logprobs = output.logprobs.unwrap();
        assert_eq!(logprobs.top[0], (output.token, logprobs.chosen));
        assert!(logprobs.top[1].1 <= logprobs.chosen && logprobs.chosen < 0.0);
    }
}

#[test]
fn a_stop_token_ends_the_sequence_and_is_its_last() {
    let engine = start(Dtype::F32, &config());
    let run = |params| {
        let request = Request {
            prompt: vec![5, 6, 7, 8],
            params,
            ticket: None,
        };
        drain(&mut engine.handle.submit(request).unwrap())
    };
    let greedy = SamplingParams {
        temperature: 0.0,
        ignore_eos: true,
        max_tokens: 12,
        ..Default::default()
    };
    let free = run(greedy.clone());
    let stop = free[5].token;
    let at = free.iter().position(|output| output.token == stop).unwrap();
    let outputs = run(SamplingParams {
        stop_token_ids: vec![stop],
        ..greedy.clone()
    });
    assert_eq!(outputs.len(), at + 1);
    assert_eq!(outputs[at].token, stop);
    assert_eq!(outputs[at].finish, Some(FinishReason::Stop));
    let later = run(SamplingParams {
        stop_token_ids: vec![stop],
        min_tokens: at + 2,
        ..greedy
    });
    assert!(later.len() >= at + 2 && later[at].token != stop);
}

#[test]
fn the_context_bounds_a_sequence() {
    let engine = start(Dtype::F32, &config());
    let limit = engine.handle.limits().max_model_len;
    let params = SamplingParams {
        max_tokens: 10_000,
        ignore_eos: true,
        ..Default::default()
    };
    let request = Request {
        prompt: vec![9; limit - 3],
        params,
        ticket: None,
    };
    let outputs = drain(&mut engine.handle.submit(request).unwrap());
    assert_eq!(outputs.len(), 3);
    assert_eq!(outputs[2].finish, Some(FinishReason::Length));
}

#[test]
fn a_dropped_stream_is_gone_after_a_step_and_frees_its_blocks() {
    let engine = start(Dtype::F32, &config());
    let endless = || Request {
        prompt: vec![3; 20],
        params: SamplingParams {
            max_tokens: 400,
            ignore_eos: true,
            ..Default::default()
        },
        ticket: None,
    };
    let mut kept = engine.handle.submit(endless()).unwrap();
    let dropped: Vec<OutputStream> = (0..5)
        .map(|_| engine.handle.submit(endless()).unwrap())
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut wait = |n| {
        runtime.block_on(async {
            for _ in 0..n {
                kept.recv().await.expect("it goes on");
            }
        });
    };
    wait(3);
    drop(dropped);
    // What was sent before the drop may wait in the channel; two steps after it the gauge is one.
    let mut running = 6;
    for _ in 0..300 {
        wait(1);
        running = engine.metrics.requests_running.get();
        if running == 1 {
            break;
        }
    }
    assert_eq!(running, 1);
    drop(kept);
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let metrics = || Arc::new(Metrics::new(512).unwrap());
    let small = EngineConfig {
        max_num_batched_tokens: 4,
        ..config()
    };
    let error = spawn(load_tiny(MODEL, Dtype::F32), &small, metrics())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("--max-num-batched-tokens 4"), "{error}");
    let tiny = EngineConfig {
        kv_cache_bytes: 100,
        ..config()
    };
    let error = spawn(load_tiny(MODEL, Dtype::F32), &tiny, metrics())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("100 bytes"), "{error}");
}

/// A prompt token beyond the vocabulary, which the server never lets through, breaks a step. In a
/// process of its own, which must end.
#[test]
fn a_panic_in_the_engine_ends_the_process() {
    if std::env::var_os("TOMBOLA_TEST_PANIC").is_some() {
        let engine = start(Dtype::F32, &config());
        let params = SamplingParams::default();
        let request = Request {
            prompt: vec![999_999],
            params,
            ticket: None,
        };
        drain(&mut engine.handle.submit(request).unwrap());
        std::thread::sleep(std::time::Duration::from_secs(20));
        std::process::exit(0);
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "engine::a_panic_in_the_engine_ends_the_process",
            "--nocapture",
        ])
        .env("TOMBOLA_TEST_PANIC", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{text}");
    assert!(
        text.contains("a step failed") && text.contains("the process ends"),
        "{text}"
    );
}
