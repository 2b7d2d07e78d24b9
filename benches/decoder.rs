//! Single steps of the default base in f32 and bf16: decoding of one stream, of 16 streams, and of
//! 16 streams with random tickets overlaid, and a 512-token prefill. All except those with tickets
//! also run with quantised weights. Throughput is in tokens. The floor of the decoding steps is a
//! plain read of the weights' bytes.
//!
//! `cargo bench --bench decoder`

mod common {
    pub mod base;
    pub mod pool;
    pub mod read_floor;
}

use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tombola::kernels::Pool;
use tombola::model::{BLOCK, Base, Batch, Dtype, TicketLayout};

use common::base::{load, random_ticket};
use common::pool::pool;
use common::read_floor::read;

/// Tokens of each sequence before the measured step.
const CONTEXT: usize = 128;

/// A batch of `rows` tokens for each of `sequences` sequences, after `context` others. `ticket`
/// gives the ticket of each sequence.
fn batch<'a>(
    sequences: usize,
    rows: usize,
    context: usize,
    ticket: impl Fn(usize) -> Option<&'a Arc<TicketLayout>>,
) -> Batch {
    let mut batch = Batch::default();
    let blocks = (context + rows).div_ceil(BLOCK) as u32;
    for sequence in 0..sequences as u32 {
        let table: Vec<u32> = (sequence * blocks..(sequence + 1) * blocks).collect();
        let tokens = (context..context + rows).map(|position| (position * 31 % 40_000) as u32);
        batch.push(&tokens.collect::<Vec<_>>(), context, &table, true);
        if let Some(ticket) = ticket(sequence as usize) {
            batch.overlay(ticket);
        }
    }
    batch
}

/// The number of weights that a step reads.
fn weights(base: &Base) -> usize {
    let parameters = base.manifest.parameters.values();
    parameters.map(|p| p.shape.iter().product::<usize>()).sum()
}

/// Steps with dense weights.
fn steps(c: &mut Criterion) {
    let pool = pool();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let base = load(dtype, false);
        let mut group = c.benchmark_group(dtype.to_string());
        group.sample_size(20);
        read(&mut group, &pool, weights(&base) * dtype.bytes(), None);
        let cases = [
            ("decode x1", 1, 1),
            ("decode x16", 16, 1),
            ("prefill 512", 1, 512),
        ];
        for (name, sequences, rows) in cases {
            let context = if rows == 1 { CONTEXT } else { 0 };
            let batch = batch(sequences, rows, context, |_| None);
            let blocks = sequences * (context + rows).div_ceil(BLOCK);
            let cache = base.kv_cache(blocks).expect("a cache");
            group.throughput(Throughput::Elements((sequences * rows) as u64));
            let step = || base.decoder.forward(&batch, &cache).expect("a step");
            group.bench_function(name, |b| b.iter(|| pool.install(step)));
        }
        overlaid(&mut group, &pool, &base);
        group.finish();
    }
}

/// Steps with quantised weights.
fn quantized(c: &mut Criterion) {
    let pool = pool();
    let base = load(Dtype::F32, true);
    let mut group = c.benchmark_group("quantised");
    group.sample_size(20);
    for (name, sequences, rows, context) in [
        ("decode x1", 1, 1, CONTEXT),
        ("decode x16", 16, 1, CONTEXT),
        ("prefill 512", 1, 512, 0),
    ] {
        let batch = batch(sequences, rows, context, |_| None);
        let blocks = sequences * (context + rows).div_ceil(BLOCK);
        let cache = base.kv_cache(blocks).expect("a cache");
        group.throughput(Throughput::Elements((sequences * rows) as u64));
        let step = || base.decoder.forward(&batch, &cache).expect("a step");
        group.bench_function(name, |b| b.iter(|| pool.install(step)));
    }
    group.finish();
}

/// Sequences of a step with tickets.
const STREAMS: usize = 16;

/// Decodes 16 streams, each under one of 1 to 16 tickets.
fn overlaid(group: &mut BenchmarkGroup<WallTime>, pool: &Pool, base: &Base) {
    let cases = [
        ("1 %", 0.01, 1),
        ("1 %", 0.01, 8),
        ("1 %", 0.01, 16),
        ("0.1 %", 0.001, 8),
        ("5 %", 0.05, 8),
        ("10 %", 0.1, 1),
        ("10 %", 0.1, 8),
    ];
    for (label, density, tickets) in cases {
        let overlay = |seed| {
            let ticket = random_ticket(base, density, seed);
            Arc::new(base.lay_out(&ticket).expect("a ticket of this base"))
        };
        let cache = base.kv_cache(STREAMS * (CONTEXT + 1).div_ceil(BLOCK));
        let cache = cache.expect("a cache");
        group.throughput(Throughput::Elements(STREAMS as u64));
        let name = format!("decode x16, {tickets} x {label}");
        // Layouts are slow to build, so they are built only for the benches that the filter
        // selects.
        group.bench_function(name, |b| {
            let overlays: Vec<_> = (0..tickets as u64).map(overlay).collect();
            let ticket = |stream: usize| Some(&overlays[stream * tickets / STREAMS]);
            let batch = batch(STREAMS, 1, CONTEXT, ticket);
            let step = || base.decoder.forward(&batch, &cache).expect("a step");
            b.iter(|| pool.install(step));
        });
    }
}

criterion_group!(benches, steps, quantized);
criterion_main!(benches);
