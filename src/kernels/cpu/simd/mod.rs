//! SIMD dispatch: one portable kernel body, compiled per instruction set and selected at run time.

mod wide;

use std::sync::LazyLock;

use half::bf16;
use wide::Lanes;
pub use wide::{Line, Wide};

/// The arithmetic of an instruction set: `a * b + c` on scalars and on [`LANES`] values at once.
/// All kernels of a process use the same one.
pub trait Arithmetic: Copy {
    /// [`LANES`] values in registers.
    type Wide: Wide;
    /// Number of accumulators that fit in registers beside the factors of a loop.
    const SUMS: usize;
    /// `a * b + c`, with one rounding unless an implementation says otherwise.
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    /// Adds the two bf16 products of each lane to its sum. The default is a stand-in for tests:
    /// kernels call this only if the machine [`multiplies_pairs`].
    #[inline(always)]
    fn dot_pairs(a: &[bf16; 2 * LANES], b: &[bf16; 2 * LANES], sums: Self::Wide) -> Self::Wide {
        let mut lanes = [0.0; LANES];
        sums.store(&mut lanes);
        let pairs = a.as_chunks::<2>().0.iter().zip(b.as_chunks::<2>().0);
        for (sum, (a, b)) in lanes.iter_mut().zip(pairs) {
            *sum = Self::mul_add(a[0].to_f32(), b[0].to_f32(), *sum);
            *sum = Self::mul_add(a[1].to_f32(), b[1].to_f32(), *sum);
        }
        Self::Wide::load(&lanes)
    }
}

/// The hardware's fused multiply-add, with one rounding.
#[cfg(any(target_arch = "aarch64", test))]
#[derive(Clone, Copy)]
pub struct Fused;

/// Like [`Fused`], in AVX2 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct FusedAvx2;

/// Like [`Fused`], in AVX-512 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct FusedAvx512;

/// A product and a sum, with two roundings: for machines without fused multiply-add, where it would
/// be a library call.
#[derive(Clone, Copy)]
pub struct Unfused;

/// Like [`FusedAvx512`], with bf16 dot products.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct FusedAvx512Bf16;

#[cfg(any(target_arch = "aarch64", test))]
impl Arithmetic for Fused {
    type Wide = Lanes<Self>;
    /// Four registers each, of the 32 of aarch64.
    const SUMS: usize = 6;
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for FusedAvx2 {
    type Wide = wide::x86::TwoOf8;
    /// Two registers each, of 16.
    const SUMS: usize = 6;
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for FusedAvx512 {
    type Wide = wide::x86::OneOf16;
    /// One register each, of 32.
    const SUMS: usize = 16;
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for FusedAvx512Bf16 {
    type Wide = wide::x86::OneOf16;
    const SUMS: usize = FusedAvx512::SUMS;

    #[inline(always)]
    fn dot_pairs(a: &[bf16; 2 * LANES], b: &[bf16; 2 * LANES], sums: Self::Wide) -> Self::Wide {
        // SAFETY: only `dispatch` names this type, and only after it has detected AVX512-BF16.
        unsafe { wide::x86::dot_pairs(a, b, sums) }
    }
}

impl Arithmetic for Unfused {
    type Wide = Lanes<Self>;
    const SUMS: usize = 6;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// A kernel body that [`dispatch`] compiles for each instruction set.
///
/// `run` and everything it calls must be `#[inline(always)]`, otherwise their code is not generated
/// with the wider vectors.
pub trait Vectorised {
    /// The result of the kernel.
    type Output;
    /// Runs the kernel with the arithmetic `A`.
    fn run<A: Arithmetic>(self) -> Self::Output;
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Part of the aarch64 baseline, like its fused multiply-add.
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

static BEST: LazyLock<Isa> = LazyLock::new(detect);

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if fused
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
        {
            return if is_x86_feature_detected!("avx512bf16") {
                Isa::Avx512Bf16
            } else {
                Isa::Avx512
            };
        }
        if fused {
            return Isa::Avx2;
        }
    }
    #[cfg(target_arch = "aarch64")]
    return Isa::Neon;
    #[allow(unreachable_code)]
    Isa::Portable
}

/// Runs the variant of `op` for the best instruction set of this machine.
#[inline]
pub fn dispatch<V: Vectorised>(op: V) -> V::Output {
    // SAFETY: `detect` has detected all features of the instruction set that it returned.
    unsafe { run_as(*BEST, op) }
}

/// Runs the variant of `op` for `isa`.
///
/// # Safety
/// The machine must have that instruction set.
#[inline]
unsafe fn run_as<V: Vectorised>(isa: Isa, op: V) -> V::Output {
    match isa {
        // SAFETY: the machine has every feature that the function is compiled with (the caller's
        // contract).
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { avx512_bf16(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(op) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => op.run::<Fused>(),
        Isa::Portable => op.run::<Unfused>(),
    }
}

/// Whether the machine has an instruction for [`Arithmetic::dot_pairs`].
pub fn multiplies_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return *BEST == Isa::Avx512Bf16;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512_bf16<V: Vectorised>(op: V) -> V::Output {
    op.run::<FusedAvx512Bf16>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512<V: Vectorised>(op: V) -> V::Output {
    op.run::<FusedAvx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<V: Vectorised>(op: V) -> V::Output {
    op.run::<FusedAvx2>()
}

/// Prefetches the cache line of `values[index]`. Does nothing if the index is out of range or the
/// architecture has no such instruction.
#[inline(always)]
pub fn prefetch<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = values.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint that neither reads nor writes; SSE is in the x86-64
        // baseline.
        unsafe { _mm_prefetch(std::ptr::from_ref(value).cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}

/// Number of lanes that reductions are split into, on every instruction set.
pub const LANES: usize = 16;

/// The sum of all lanes, as a tree of fixed shape.
#[inline(always)]
pub fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    tree(lanes, |a, b| a + b)
}

/// Reduces all terms with `add`, as a tree of fixed shape.
#[inline(always)]
pub fn tree<T: Copy>(mut terms: [T; LANES], add: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            terms[i] = add(terms[i], terms[i + width]);
        }
        width /= 2;
    }
    terms[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::math;

    /// A sample of all that kernels do: lane products, exponentials, widening, sums.
    #[derive(Clone, Copy)]
    struct Probe<'a>(&'a [f32], &'a [f32], &'a [bf16]);

    impl Vectorised for Probe<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<A: Arithmetic>(self) -> f32 {
            let mut sums = [0.0; LANES];
            for (a, b) in self.0.chunks_exact(LANES).zip(self.1.chunks_exact(LANES)) {
                for l in 0..LANES {
                    sums[l] = A::mul_add(a[l], math::exp::<A>(b[l]), sums[l]);
                }
            }
            let mut wide = A::Wide::zero();
            let (a, b) = (self.0.as_chunks().0, self.2.as_chunks().0);
            for (a, b) in a.iter().zip(b) {
                wide = A::Wide::widen(b).mul_add(A::Wide::load(a), wide);
            }
            let mut stored = [0.0; LANES];
            wide.store(&mut stored);
            assert_eq!(wide.sum(), sum_lanes(stored));
            let more = stored.map(|lane| lane + 0.5);
            wide.add(A::Wide::splat(0.5)).store(&mut stored);
            assert_eq!(stored, more);
            let at = |row: usize, column: usize| (row * LANES + column) as f32;
            let mut block = std::array::from_fn(|i| Line(std::array::from_fn(|j| at(i, j))));
            A::Wide::transpose(&mut block);
            assert_eq!(
                block.map(|line| line.0),
                std::array::from_fn(|i| std::array::from_fn(|j| at(j, i)))
            );
            sum_lanes(sums) + wide.sum()
        }
    }

    #[test]
    fn all_instruction_sets_agree() {
        let a: Vec<f32> = (0..1600).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..1600).map(|i| (i as f32 * 0.11).cos()).collect();
        let c: Vec<bf16> = b.iter().map(|&b| bf16::from_f32(b)).collect();
        let probe = Probe(&a, &b, &c);
        let fused = probe.run::<Fused>();
        assert!((fused - probe.run::<Unfused>()).abs() < 1e-3 * fused.abs());
        #[cfg(target_arch = "x86_64")]
        {
            let all = [Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2];
            let best = all
                .iter()
                .position(|isa| isa == &*BEST)
                .unwrap_or(all.len());
            for &isa in &all[best..] {
                // SAFETY: `isa` is the detected instruction set or a subset of it.
                assert_eq!(unsafe { run_as(isa, probe) }, fused, "{isa:?}");
            }
        }
    }

    /// Dot products of small integers, which are exact in any rounding order.
    #[derive(Clone, Copy)]
    struct PairProbe<'a>(&'a [bf16], &'a [bf16]);

    impl Vectorised for PairProbe<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<A: Arithmetic>(self) -> f32 {
            let (a, b) = (self.0.as_chunks().0, self.1.as_chunks().0);
            let pairs = a.iter().zip(b);
            let sums = pairs.fold(A::Wide::zero(), |sums, (a, b)| A::dot_pairs(a, b, sums));
            sums.sum()
        }
    }

    #[test]
    fn dot_pairs_multiplies_within_lanes() {
        let numbers = |factor: usize| -> Vec<bf16> {
            let number = |i| bf16::from_f32((i * factor % 17) as f32 - 8.0);
            (0..640).map(number).collect()
        };
        let (a, b) = (numbers(3), numbers(5));
        let want: f32 = a.iter().zip(&b).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
        let probe = PairProbe(&a, &b);
        assert_eq!(probe.run::<Fused>(), want);
        assert_eq!(dispatch(probe), want);
    }
}
