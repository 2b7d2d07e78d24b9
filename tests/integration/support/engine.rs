//! An engine over a tiny base, with random tickets and requests for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tombola::engine::{
    EngineConfig, EngineHandle, EngineThread, Output, OutputStream, Request, SamplingParams,
    TicketMode, spawn,
};
use tombola::metrics::Metrics;
use tombola::model::{Base, Dtype, TicketMemory};
use tombola::registry::{Lease, Registry, RegistryOptions};
use tombola::ticket::{BaseManifest, DeltaDtype, Digest};

use super::bases::{LLAMA, load_tiny};
use super::environment::device;
use super::tickets::{RandomDeltas, encode_ticket};

/// Tolerance in bf16 between log-probabilities of an applied and of an overlaid ticket: an applied
/// weight is rounded, an overlaid delta is not. On a GPU activations are rounded too.
pub fn near_in_bf16() -> f32 {
    if device().is_gpu() { 0.15 } else { 0.05 }
}

/// Small limits, tickets applied.
pub fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 24,
        max_queue: 1000,
        kv_cache_bytes: 1 << 20,
        enable_prefix_caching: true,
        ticket_mode: TicketMode::Apply,
        costs: None,
        threads: 2,
        enforce_eager: false,
        end_tokens: vec![2],
    }
}

/// A running engine; it stops when this is dropped.
pub struct Running {
    pub handle: EngineHandle,
    pub metrics: Arc<Metrics>,
    /// Digest of the base as loaded.
    loaded: Digest,
    _thread: EngineThread,
}

impl Running {
    /// The value of a counter.
    pub fn count(&self, series: &str) -> u64 {
        let metrics = self.metrics.render().unwrap();
        let start = format!("tombola_{series} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&start));
        value.expect("a series").parse().unwrap()
    }
}

/// An engine over the tiny base.
pub fn start(dtype: Dtype, config: &EngineConfig) -> Running {
    start_on(load_tiny(LLAMA, dtype), config)
}

/// An engine over a base.
pub fn start_on(base: Base, config: &EngineConfig) -> Running {
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

/// Writes a ticket with random deltas of at most `largest` on a tenth of the MLP weights.
fn write_ticket(base: &BaseManifest, seed: u64, largest: f32, path: &Path) {
    let deltas = RandomDeltas {
        density: 0.1,
        largest,
        dtype: DeltaDtype::Bf16,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let tensors = deltas.tensors(base, &mut rng, |name, _| name.contains("mlp"));
    std::fs::write(path, encode_ticket(base, &tensors)).unwrap();
}

/// A registry over a folder of random tickets `t0`, `t1`, …, which keeps at most `memory_budget`
/// bytes of them in memory.
pub fn registry(count: usize, largest: f32, memory_budget: usize) -> (Registry, TempDir) {
    let base = load_tiny(LLAMA, Dtype::F32).manifest;
    registry_of(base, count, largest, memory_budget)
}

/// A lease of a ticket for a base of the same shapes but another fingerprint.
pub fn foreign_lease() -> (Lease, TempDir) {
    let base = BaseManifest {
        fingerprint: Digest::of(b"another base"),
        ..(*load_tiny(LLAMA, Dtype::F32).manifest).clone()
    };
    let (registry, folder) = registry_of(Arc::new(base), 1, 0.5, 1 << 24);
    (registry.lease(None, "t0").unwrap(), folder)
}

fn registry_of(
    base: Arc<BaseManifest>,
    count: usize,
    largest: f32,
    memory_budget: usize,
) -> (Registry, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..count {
        let path = folder.path().join(format!("t{i}.safetensors"));
        write_ticket(&base, i as u64, largest, &path);
    }
    let options = RegistryOptions {
        max_ticket_bytes: 1 << 20,
        memory_budget,
        ticket_memory: TicketMemory::without_layouts(),
        ..RegistryOptions::default()
    };
    let opened = Registry::open(folder.path(), None, base, options).unwrap();
    assert!(opened.refused.is_empty());
    (opened.registry, folder)
}

/// Leases of `count` tickets, each of which changes every answer.
pub fn leases(count: usize) -> (Vec<Lease>, TempDir) {
    let (registry, folder) = registry(count, 0.5, 1 << 24);
    let lease = |i| registry.lease(None, &format!("t{i}")).unwrap();
    ((0..count).map(lease).collect(), folder)
}

/// Waits until `holds` returns true, for at most 20 s.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within 20 s");
}

/// The remaining outputs of a stream, none of which may be an error.
pub fn drain(stream: &mut OutputStream) -> Vec<Output> {
    std::iter::from_fn(|| stream.blocking_recv())
        .map(Result::unwrap)
        .collect()
}

/// The remaining tokens of a stream, which has to end with a finish reason.
pub fn tokens(stream: &mut OutputStream) -> Vec<u32> {
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

/// A mix of requests: greedy and random, short and long, under each ticket and under none.
pub fn requests(count: usize, leases: &[Lease]) -> Vec<Request> {
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
        ..Request::default()
    };
    (0..count).map(&mut request).collect()
}

/// Asserts that `count` requests get the same tokens one by one and all at once. Returns the engine
/// that ran them at once.
pub fn same_tokens(dtype: Dtype, together: &EngineConfig, count: usize) -> Running {
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

/// Asserts that the weights of an idle engine are, bit for bit, those that were loaded.
pub fn base_is_as_loaded(engine: &Running) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let digest = runtime.unwrap().block_on(engine.handle.base_digest());
    assert_eq!(digest, Some(engine.loaded));
}

/// Like [`config`], with tickets overlaid.
pub fn overlay_config() -> EngineConfig {
    EngineConfig {
        ticket_mode: TicketMode::Overlay,
        ..config()
    }
}
