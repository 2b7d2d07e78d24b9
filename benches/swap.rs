//! Applying and reverting a ticket of 0.1 %, 1 % and 10 % of the default base's adaptable weights,
//! in f32 and bf16. Throughput is in nonzeros: its inverse is the time per nonzero.
//!
//! The floor beside each is a copy, on all threads, of the bytes that a swap has to move: the
//! touched 64-byte lines of the weights (`1 − (1 − ρ)^n` of all lines, with `n` weights per line)
//! and the ticket's arrays.
//!
//! `cargo bench --bench swap`

mod common {
    pub mod base;
    pub mod pool;
}

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use tombola::model::{Base, Dtype};
use tombola::ticket::BoundTicket;

use common::base::{load, random_ticket};
use common::pool::pool;

/// Bytes that `apply` moves in one direction: touched lines, columns, deltas and saved values.
fn floor_bytes(base: &Base, ticket: &BoundTicket, dtype: Dtype) -> usize {
    const LINE: usize = 64;
    let weights = base.manifest.adaptable_weights();
    let density = ticket.nonzeros() as f64 / weights as f64;
    let touched = 1.0 - (1.0 - density).powi((LINE / dtype.bytes()) as i32);
    let lines = (weights * dtype.bytes()) as f64 * touched;
    lines as usize + ticket.resident_bytes() + ticket.nonzeros() * dtype.bytes()
}

fn swap(c: &mut Criterion) {
    let pool = pool();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut base = load(dtype, false);
        for (label, density) in [("0.1 %", 0.001), ("1 %", 0.01), ("10 %", 0.1)] {
            let ticket = random_ticket(&base, density, 7);
            let mut group = c.benchmark_group(format!("swap {dtype} {label}"));
            group.sample_size(20);
            group.throughput(Throughput::Elements(ticket.nonzeros() as u64));
            let bytes = floor_bytes(&base, &ticket, dtype);
            let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
            group.bench_function("floor: copy the bytes touched", |b| {
                let copy = |(to, from): (&mut [u8], &[u8])| to.copy_from_slice(from);
                let mut copy = || {
                    to.par_chunks_mut(1 << 18)
                        .zip(from.par_chunks(1 << 18))
                        .for_each(copy);
                };
                b.iter(|| pool.install(&mut copy));
            });
            let resident = &mut base.resident;
            for (name, timed) in [("apply", true), ("revert", false)] {
                group.bench_function(name, |b| {
                    b.iter_custom(|iterations| {
                        let mut total = std::time::Duration::ZERO;
                        for _ in 0..iterations {
                            let mut one = |ticket| pool.install(|| resident.swap(ticket, 1.0));
                            let apply = one(Some(&ticket)).expect("it fits").expect("a swap");
                            let revert = one(None).expect("it fits").expect("a swap");
                            total += if timed { apply.took } else { revert.took };
                        }
                        total
                    });
                });
            }
            group.finish();
        }
        pool.install(|| base.resident.swap(None, 1.0))
            .expect("it fits");
        assert_eq!(
            base.resident.digest().expect("readable"),
            base.loaded_digest
        );
    }
}

criterion_group!(benches, swap);
criterion_main!(benches);
