//! Floor of a case by its arithmetic: the minimum time for it on this machine.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use rayon::prelude::*;
use tombola::kernels::Pool;

/// Measures `count` f32 multiply-adds in registers on all threads, the floor of `case`.
pub fn multiply_add(group: &mut BenchmarkGroup<WallTime>, pool: &Pool, count: usize, case: &str) {
    let threads = pool.threads();
    let work = || {
        let parts = (0..threads).into_par_iter().with_max_len(1);
        parts.map(|_| in_registers(count / threads)).sum::<f32>()
    };
    group.throughput(Throughput::Elements(count as u64));
    let name = format!("floor: multiply-adds of {case}");
    group.bench_function(name, |b| b.iter(|| black_box(pool.install(work))));
}

/// Independent chains of multiply-adds, which hide the latency of each.
const CHAINS: usize = 12;

fn in_registers(count: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            return unsafe { x86::avx512(count) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were just detected.
            return unsafe { x86::avx2(count) };
        }
    }
    let mut sums = [[black_box(0.5f32); 4]; CHAINS];
    let factor = black_box(0.999f32);
    for _ in 0..count / (CHAINS * 4) {
        for sums in &mut sums {
            for sum in sums {
                *sum = sum.mul_add(factor, factor);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CHAINS, black_box};

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(count: usize) -> f32 {
        let factor = _mm256_set1_ps(black_box(0.999));
        let mut sums = [_mm256_set1_ps(black_box(0.5)); CHAINS];
        for _ in 0..count / (CHAINS * 8) {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        let total = sums.into_iter().reduce(|a, b| _mm256_add_ps(a, b));
        total.map_or(0.0, |total| _mm256_cvtss_f32(total))
    }

    #[target_feature(enable = "avx512f")]
    pub fn avx512(count: usize) -> f32 {
        let factor = _mm512_set1_ps(black_box(0.999));
        let mut sums = [_mm512_set1_ps(black_box(0.5)); CHAINS];
        for _ in 0..count / (CHAINS * 16) {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        let total = sums.into_iter().reduce(|a, b| _mm512_add_ps(a, b));
        total.map_or(0.0, |total| _mm512_cvtss_f32(total))
    }
}
