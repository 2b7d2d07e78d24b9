//! [`LANES`] numbers at once, in as many registers as the instruction set takes for them.

use half::bf16;

use super::{Arithmetic, LANES, sum_lanes};

/// `LANES` lanes of f32. Lane by lane every implementation computes the same, but for the rounding of
/// the product in [`super::Separate`].
///
/// The implementations by intrinsics are private to `simd`: [`super::dispatch`] alone names them, once
/// it has found their instruction set.
pub trait Wide: Copy {
    fn zero() -> Self;
    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    /// The values, widened exactly.
    fn widen(values: &[bf16; LANES]) -> Self;
    fn store(self, into: &mut [f32; LANES]);
    /// `self · by + to`.
    fn mul_add(self, by: Self, to: Self) -> Self;
    fn add(self, other: Self) -> Self;
    /// The sum of all lanes, in the order of [`sum_lanes`].
    fn sum(self) -> f32;
    /// Makes rows of columns.
    #[inline(always)]
    fn transpose(block: &mut [Line; LANES]) {
        for i in 0..LANES {
            let (above, rest) = block.split_at_mut(i);
            for (value, line) in rest[0].0.iter_mut().zip(above) {
                std::mem::swap(value, &mut line.0[i]);
            }
        }
    }
}

/// `N` numbers in memory that begin with a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line<T = f32, const N: usize = LANES>(pub [T; N]);

/// Lanes as an array, for the compiler to vectorise.
#[derive(Clone, Copy)]
pub struct Lanes<A>([f32; LANES], std::marker::PhantomData<A>);

impl<A> Lanes<A> {
    #[inline(always)]
    fn new(lanes: [f32; LANES]) -> Self {
        Self(lanes, std::marker::PhantomData)
    }
}

impl<A: Arithmetic> Wide for Lanes<A> {
    #[inline(always)]
    fn zero() -> Self {
        Self::new([0.0; LANES])
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self::new([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self::new(*values)
    }

    #[inline(always)]
    fn widen(values: &[bf16; LANES]) -> Self {
        // Written out so that it vectorises: `to_f32` branches on NaN.
        Self::new(values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }

    #[inline(always)]
    fn store(self, into: &mut [f32; LANES]) {
        *into = self.0;
    }

    #[inline(always)]
    fn mul_add(self, by: Self, to: Self) -> Self {
        let mut lanes = to.0;
        for (lane, (a, b)) in lanes.iter_mut().zip(self.0.into_iter().zip(by.0)) {
            *lane = A::mul_add(a, b, *lane);
        }
        Self::new(lanes)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane += other;
        }
        Self::new(lanes)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        sum_lanes(self.0)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Line, Wide, bf16};

    /// Two registers of AVX2.
    #[derive(Clone, Copy)]
    pub struct TwoOf8(__m256, __m256);

    impl Wide for TwoOf8 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: whoever names this type has found AVX2 and FMA (see the trait); so in all that
            // follows.
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see `zero`.
            let half = unsafe { _mm256_set1_ps(value) };
            Self(half, half)
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            let start = values.as_ptr();
            // SAFETY: both halves lie within the array; the loads need no alignment.
            unsafe { Self(_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))) }
        }

        #[inline(always)]
        fn widen(values: &[bf16; LANES]) -> Self {
            let start = values.as_ptr();
            // SAFETY: both halves lie within the array; the loads need no alignment.
            unsafe {
                let half = |start: *const bf16| {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(start.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                };
                Self(half(start), half(start.add(8)))
            }
        }

        #[inline(always)]
        fn store(self, into: &mut [f32; LANES]) {
            let start = into.as_mut_ptr();
            // SAFETY: both halves lie within the array; the stores need no alignment.
            unsafe {
                _mm256_storeu_ps(start, self.0);
                _mm256_storeu_ps(start.add(8), self.1);
            }
        }

        #[inline(always)]
        fn mul_add(self, by: Self, to: Self) -> Self {
            // SAFETY: see `zero`.
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, by.0, to.0),
                    _mm256_fmadd_ps(self.1, by.1, to.1),
                )
            }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see `zero`.
            unsafe {
                Self(
                    _mm256_add_ps(self.0, other.0),
                    _mm256_add_ps(self.1, other.1),
                )
            }
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            // SAFETY: see `zero`.
            unsafe { sum_of_8(_mm256_add_ps(self.0, self.1)) }
        }

        #[inline(always)]
        fn transpose(block: &mut [Line; LANES]) {
            // SAFETY: see `zero`.
            unsafe { transpose_by_8(block) }
        }
    }

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct OneOf16(__m512);

    impl Wide for OneOf16 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: whoever names this type has found AVX-512 (see the trait); so in all that
            // follows.
            unsafe { Self(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see `zero`.
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: the array is as long as the register; the load needs no alignment.
            unsafe { Self(_mm512_loadu_ps(values.as_ptr())) }
        }

        #[inline(always)]
        fn widen(values: &[bf16; LANES]) -> Self {
            // SAFETY: the array is as long as half the register; the load needs no alignment.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }

        #[inline(always)]
        fn store(self, into: &mut [f32; LANES]) {
            // SAFETY: the array is as long as the register; the store needs no alignment.
            unsafe { _mm512_storeu_ps(into.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn mul_add(self, by: Self, to: Self) -> Self {
            // SAFETY: see `zero`.
            unsafe { Self(_mm512_fmadd_ps(self.0, by.0, to.0)) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see `zero`.
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }

        #[inline(always)]
        fn transpose(block: &mut [Line; LANES]) {
            // SAFETY: a machine that has AVX-512 has AVX2.
            unsafe { transpose_by_8(block) }
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            // SAFETY: see `zero`.
            unsafe {
                let (low, high) = (
                    _mm512_castps512_ps256(self.0),
                    _mm512_extractf32x8_ps::<1>(self.0),
                );
                sum_of_8(_mm256_add_ps(low, high))
            }
        }
    }

    /// Adds the products of the pairs of bf16 in each lane to its sum.
    ///
    /// # Safety
    /// The machine must have AVX512-BF16.
    #[inline(always)]
    pub unsafe fn dot_pairs(
        a: &[bf16; 2 * LANES],
        b: &[bf16; 2 * LANES],
        sums: OneOf16,
    ) -> OneOf16 {
        // SAFETY: the arrays are as long as the register, whose bits may be any; the instruction is
        // there (the caller's promise).
        unsafe {
            let pairs = |values: &[bf16; 2 * LANES]| {
                let bits = _mm512_loadu_si512(values.as_ptr().cast());
                std::mem::transmute::<__m512i, __m512bh>(bits)
            };
            OneOf16(_mm512_dpbf16_ps(sums.0, pairs(a), pairs(b)))
        }
    }

    /// Makes rows of columns: each quarter by itself, those beside the diagonal change places.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn transpose_by_8(block: &mut [Line; LANES]) {
        for (top, left) in [(0, 0), (8, 8), (0, 8)] {
            // SAFETY: the caller's promise.
            let (one, other) =
                unsafe { (columns_of(block, top, left), columns_of(block, left, top)) };
            for i in 0..8 {
                for (row, from, values) in [(left + i, top, one[i]), (top + i, left, other[i])] {
                    let into = &mut block[row].0[from..from + 8];
                    // SAFETY: as long as the register; the store needs no alignment.
                    unsafe { _mm256_storeu_ps(into.as_mut_ptr(), values) }
                }
            }
        }
    }

    /// The columns of the eight by eight numbers at `[top, left]`.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn columns_of(block: &[Line; LANES], top: usize, left: usize) -> [__m256; 8] {
        // SAFETY: the caller's promise.
        unsafe {
            let a = columns_of_four(block, top, left);
            let b = columns_of_four(block, top + 4, left);
            [
                _mm256_permute2f128_ps::<0x20>(a[0], b[0]),
                _mm256_permute2f128_ps::<0x20>(a[1], b[1]),
                _mm256_permute2f128_ps::<0x20>(a[2], b[2]),
                _mm256_permute2f128_ps::<0x20>(a[3], b[3]),
                _mm256_permute2f128_ps::<0x31>(a[0], b[0]),
                _mm256_permute2f128_ps::<0x31>(a[1], b[1]),
                _mm256_permute2f128_ps::<0x31>(a[2], b[2]),
                _mm256_permute2f128_ps::<0x31>(a[3], b[3]),
            ]
        }
    }

    /// The columns of four rows of eight: register `i` holds columns `i` and `i + 4`.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn columns_of_four(block: &[Line; LANES], top: usize, left: usize) -> [__m256; 4] {
        // SAFETY: AVX2 is the caller's promise; each load is of eight numbers of a slice as long.
        unsafe {
            let a = _mm256_loadu_ps(block[top].0[left..left + 8].as_ptr());
            let b = _mm256_loadu_ps(block[top + 1].0[left..left + 8].as_ptr());
            let c = _mm256_loadu_ps(block[top + 2].0[left..left + 8].as_ptr());
            let d = _mm256_loadu_ps(block[top + 3].0[left..left + 8].as_ptr());
            let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xEE>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
            ]
        }
    }

    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn sum_of_8(lanes: __m256) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (
                _mm256_castps256_ps128(lanes),
                _mm256_extractf128_ps::<1>(lanes),
            );
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
