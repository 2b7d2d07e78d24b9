//! The engine as its callers see it: the same tokens whatever the company, tickets that do not
//! touch each other, cancellation, preemption, and an end rather than a wrong answer.

mod modes;
mod scoring;
mod sequences;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tombola::engine::{
    EngineConfig, EngineHandle, EngineThread, FinishReason, Output, OutputStream, Request,
    SamplingParams, SequenceError, TicketMode, spawn,
};
use tombola::metrics::Metrics;
use tombola::model::{BLOCK, Dtype};
use tombola::registry::{Lease, MemoryOf, Registry, RegistryOptions};
use tombola::ticket::{BaseManifest, Digest, TensorDelta};

use crate::common::{Player, device, encode_ticket, load_tiny, random_delta};

pub const MODEL: &str = "llama-untied";

/// How near log-probabilities are that were computed in two ways, in bf16: an applied weight is rounded, an overlaid
/// delta is not. On a GPU activations are rounded, too.
fn near_in_bf16() -> f32 {
    if device().is_gpu() { 0.15 } else { 0.05 }
}

pub fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 24,
        max_queue: 1000,
        kv_cache_bytes: 1 << 20,
        ticket_mode: TicketMode::Apply,
        costs: None,
        threads: 2,
        enforce_eager: false,
        end_tokens: vec![2],
    }
}

pub struct Running {
    pub handle: EngineHandle,
    metrics: Arc<Metrics>,
    loaded: Digest,
    _thread: EngineThread,
}

impl Running {
    /// A counter's value.
    fn count(&self, series: &str) -> u64 {
        let metrics = self.metrics.render().unwrap();
        let start = format!("tombola_{series} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&start));
        value.expect("a series").parse().unwrap()
    }
}

pub fn start(dtype: Dtype, config: &EngineConfig) -> Running {
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

/// A ticket with random deltas, at most so large, on a tenth of the MLP weights.
fn write_ticket(base: &BaseManifest, seed: u64, largest: f32, path: &Path) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tensors = BTreeMap::new();
    for (name, parameter) in &base.parameters {
        if parameter.adaptable && name.contains("mlp") {
            let shape = [parameter.shape[0], parameter.shape[1]];
            let delta = random_delta(shape, 0.1, largest, true, &mut rng);
            tensors.insert(name.clone(), delta);
        }
    }
    std::fs::write(path, encode_ticket(base, &tensors)).unwrap();
}

/// A folder of random tickets `t0`, `t1`, … with memory for so many bytes of them.
pub fn registry(count: usize, largest: f32, memory_budget: usize) -> (Registry, TempDir) {
    let base = load_tiny(MODEL, Dtype::F32).manifest;
    let folder = tempfile::tempdir().unwrap();
    for i in 0..count {
        let path = folder.path().join(format!("t{i}.safetensors"));
        write_ticket(&base, i as u64, largest, &path);
    }
    let options = RegistryOptions {
        max_ticket_bytes: 1 << 20,
        memory_budget,
        memory_of: MemoryOf::new(|ticket, _| ticket.resident_bytes()),
        allow_foreign_base: false,
    };
    let opened = Registry::open(folder.path(), base, options).unwrap();
    assert!(opened.refused.is_empty());
    (opened.registry, folder)
}

/// Leases of `count` tickets that move every answer.
fn leases(count: usize) -> (Vec<Lease>, TempDir) {
    let (registry, folder) = registry(count, 0.5, 1 << 24);
    let lease = |i| registry.lease(&format!("t{i}")).unwrap();
    ((0..count).map(lease).collect(), folder)
}

/// Waits for something that the engine's thread does by itself.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within 20 s");
}

fn drain(stream: &mut OutputStream) -> Vec<Output> {
    std::iter::from_fn(|| stream.blocking_recv())
        .map(Result::unwrap)
        .collect()
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
        scored: Vec::new(),
    };
    (0..count).map(&mut request).collect()
}

/// One after the other, then all at once: the tokens must be the same.
fn same_tokens(dtype: Dtype, together: &EngineConfig, count: usize) -> Running {
    let (leases, _folder) = leases(3);
    let alone = EngineConfig {
        ticket_mode: together.ticket_mode,
        ..config()
    };
    let alone = start(dtype, &alone);
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
        base_is_as_loaded(&engine);
        assert!(engine.count("ticket_swaps_total") >= 4);
        assert_eq!(engine.count("engine_steps_total{mode=\"overlay\"}"), 0);
        assert!(engine.count("engine_steps_total{mode=\"apply\"}") > 0);
    }
}

/// The weights of an idle engine are bit for bit what they were.
fn base_is_as_loaded(engine: &Running) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let digest = runtime.unwrap().block_on(engine.handle.base_digest());
    assert_eq!(digest, Some(engine.loaded));
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
        engine.metrics.engine.preemptions.get() > 0,
        "nothing was preempted"
    );
    assert_eq!(engine.handle.limits().max_model_len, 10 * BLOCK);
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
    assert!(error.contains("4 tokens per step"), "{error}");
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
            ..Request::default()
        };
        drain(&mut engine.handle.submit(request).unwrap());
        std::thread::sleep(Duration::from_secs(20));
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
