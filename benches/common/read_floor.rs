//! Floor of a case by its bytes: the minimum time to read them on this machine.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use rayon::prelude::*;
use tombola::kernels::Pool;

/// Measures a plain read of `bytes` bytes on all threads, the floor of one case or of the whole
/// group.
pub fn read(group: &mut BenchmarkGroup<WallTime>, pool: &Pool, bytes: usize, case: Option<&str>) {
    let words = vec![1u64; bytes / 8];
    let read = || {
        let parts = words.par_chunks(1 << 16);
        parts.map(|part| part.iter().sum::<u64>()).sum::<u64>()
    };
    group.throughput(Throughput::Bytes(bytes as u64));
    let of_case = case.map_or(String::new(), |case| format!(" of {case}"));
    let name = format!("floor: read {:.1} MB{of_case}", bytes as f64 / 1e6);
    group.bench_function(name, |b| b.iter(|| black_box(pool.install(read))));
}
