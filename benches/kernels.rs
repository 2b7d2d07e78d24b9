//! The kernels of a step on the default base's shapes. The floor beside each is a plain read of its
//! bytes, or its multiply-adds in registers.
//!
//! `cargo bench --bench kernels`

mod common {
    pub mod arithmetic_floor;
    pub mod pool;
    pub mod read_floor;
}

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tombola::kernels::activation::silu_mul;
use tombola::kernels::attention::{Span, Spans, attention};
use tombola::kernels::kv::{BLOCK, KvBlocks};
use tombola::kernels::linear::linear;
use tombola::kernels::step::inputs::Inputs;

use common::arithmetic_floor::multiply_add;
use common::pool::pool;
use common::read_floor::read;

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCAB: usize = 49_152;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

/// The weights of a step, `[out, in]`: those of each layer, then the head.
fn shapes() -> Vec<[usize; 2]> {
    let qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let layer = [
        [qkv, HIDDEN],
        [HIDDEN, HIDDEN],
        [2 * INNER, HIDDEN],
        [HIDDEN, INNER],
    ];
    let layers = (0..LAYERS).flat_map(|_| layer);
    layers.chain([[VOCAB, HIDDEN]]).collect()
}

/// A tensor without zeros and subnormal numbers.
fn filled(shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    let shape = shape.into();
    let values = (0..shape.elem_count()).map(|i| (i % 251) as f32 / 251.0 - 0.5);
    let tensor = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu);
    tensor.and_then(|t| t.to_dtype(dtype)).expect("a tensor")
}

/// All products of a step of 1 to 64 rows.
fn products(c: &mut Criterion) {
    let pool = pool();
    for dtype in [DType::F32, DType::BF16] {
        let weights: Vec<Tensor> = shapes()
            .iter()
            .map(|s| filled(s.as_slice(), dtype))
            .collect();
        let count: usize = weights.iter().map(Tensor::elem_count).sum();
        let mut group = c.benchmark_group(format!("products of a step, {}", dtype.as_str()));
        group.sample_size(20);
        read(&mut group, &pool, count * dtype.size_in_bytes(), None);
        for rows in [1, 2, 4, 8, 16, 32, 64] {
            let inputs = [HIDDEN, INNER].map(|n| filled((rows, n), DType::F32));
            let input = |inner: usize| {
                if inner == HIDDEN {
                    &inputs[0]
                } else {
                    &inputs[1]
                }
            };
            let step = || {
                for weight in &weights {
                    let x = input(weight.dims()[1]);
                    black_box(linear(x, weight, None).expect("a product"));
                }
            };
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(format!("{rows} rows"), |b| b.iter(|| pool.install(step)));
            if rows >= 16 {
                multiply_add(&mut group, &pool, count * rows, &format!("{rows} rows"));
            }
        }
        group.finish();
    }
}

/// The products of a prompt: 512 rows through the layers, without the head.
fn prefill(c: &mut Criterion) {
    let pool = pool();
    let rows = 512;
    for dtype in [DType::F32, DType::BF16] {
        let shapes = shapes();
        let layers = &shapes[..LAYERS * 4];
        let weights: Vec<Tensor> = layers.iter().map(|s| filled(s.as_slice(), dtype)).collect();
        let count: usize = weights.iter().map(Tensor::elem_count).sum();
        let mut group = c.benchmark_group(format!("products of a prompt, {}", dtype.as_str()));
        group.sample_size(10);
        let inputs = [HIDDEN, INNER].map(|n| filled((rows, n), DType::F32));
        let step = || {
            for weight in &weights {
                let x = &inputs[usize::from(weight.dims()[1] == INNER)];
                black_box(linear(x, weight, None).expect("a product"));
            }
        };
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{rows} rows"), |b| b.iter(|| pool.install(step)));
        multiply_add(&mut group, &pool, count * rows, &format!("{rows} rows"));
        group.finish();
    }
}

/// Attention of 16 sequences in all layers, and of a prompt in one layer.
fn attentions(c: &mut Criterion) {
    let pool = pool();
    for dtype in [DType::F32, DType::BF16] {
        let mut group = c.benchmark_group(format!("attention, {}", dtype.as_str()));
        group.sample_size(20);
        for (sequences, rows, context) in [(16, 1, 128), (16, 1, 512), (16, 1, 2048), (1, 512, 512)]
        {
            let blocks = context / BLOCK;
            let layers = if rows == 1 { LAYERS } else { 1 };
            let cache = || {
                // Written once, so that each cache has its own pages.
                let shape = (2, sequences * blocks, KV_HEADS, HEAD_DIM * BLOCK);
                KvBlocks::new(filled(shape, dtype), HEAD_DIM).expect("a cache")
            };
            let caches: Vec<_> = (0..layers).map(|_| cache()).collect();
            let spans: Vec<Span> = (0..sequences)
                .map(|sequence| Span {
                    first_row: sequence * rows,
                    rows,
                    first_position: context - rows,
                    blocks: (sequence * blocks..(sequence + 1) * blocks)
                        .map(|b| b as u32)
                        .collect(),
                })
                .collect();
            let queries = filled((sequences * rows, HEADS, HEAD_DIM), DType::F32);
            let spans = Spans::new(&spans, HEADS / KV_HEADS, &mut Inputs::new(&Device::Cpu))
                .expect("spans");
            let step = || {
                for cached in &caches {
                    let y = attention(&queries, cached, &spans, None, 0.125);
                    black_box(y.expect("attention"));
                }
            };
            let name = format!("{sequences} x {rows}, context {context}");
            group.throughput(Throughput::Elements((sequences * rows) as u64));
            group.bench_function(&name, |b| b.iter(|| pool.install(step)));
            if rows == 1 {
                let values = sequences * context * KV_HEADS * HEAD_DIM * 2 * layers;
                read(
                    &mut group,
                    &pool,
                    values * dtype.size_in_bytes(),
                    Some(&name),
                );
            } else {
                // Two products of `rows × rows`, of which causality leaves half.
                let products = rows * rows * HEADS * HEAD_DIM;
                multiply_add(&mut group, &pool, products, &name);
            }
        }
        group.finish();
    }
}

/// The gated activation of 16 rows, in all layers.
fn activations(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("silu of a step, f32");
    for rows in [1, 16] {
        let x = filled((rows, 2 * INNER), DType::F32);
        let step = || {
            for _ in 0..LAYERS {
                black_box(silu_mul(&x).expect("an activation"));
            }
        };
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{rows} rows"), |b| b.iter(|| pool.install(step)));
    }
    group.finish();
}

criterion_group!(benches, products, prefill, attentions, activations);
criterion_main!(benches);
