//! [`LANES`] f32 values in the vector registers of each instruction set.

use half::bf16;

use super::{Arithmetic, LANES, sum_lanes};

/// `LANES` lanes of f32. All implementations compute the same values lane by lane, except that
/// [`super::Unfused`] also rounds the product of a multiply-add.
///
/// The implementations by intrinsics are private to `simd`: only [`super::dispatch`] names them,
/// and only after it has detected their instruction set.
pub trait Wide: Copy {
    /// All lanes 0.
    fn zero() -> Self;
    /// All lanes `value`.
    fn splat(value: f32) -> Self;
    /// Loads f32 values.
    fn load(values: &[f32; LANES]) -> Self;
    /// Loads bf16 values, widened exactly.
    fn widen(values: &[bf16; LANES]) -> Self;
    /// Stores the lanes.
    fn store(self, into: &mut [f32; LANES]);
    /// `self · by + to`, lane by lane.
    fn mul_add(self, by: Self, to: Self) -> Self;
    /// `self + other`, lane by lane.
    fn add(self, other: Self) -> Self;
    /// The sum of all lanes, in the order of [`sum_lanes`].
    fn sum(self) -> f32;
    /// Transposes a square block in place.
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

/// `N` values aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line<T = f32, const N: usize = LANES>(pub [T; N]);

/// Lanes as an array, which the compiler vectorises.
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
        // By hand, because `to_f32` branches on NaN and would not vectorise.
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

    /// Two AVX2 registers of eight lanes each.
    #[derive(Clone, Copy)]
    pub struct TwoOf8(__m256, __m256);

    impl Wide for TwoOf8 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: code that names this type has detected AVX2 and FMA (see the trait). The same
            // holds for all methods below.
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
            // SAFETY: see `zero`; both halves lie within the array, and the loads may be unaligned.
            unsafe { Self(_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))) }
        }

        #[inline(always)]
        fn widen(values: &[bf16; LANES]) -> Self {
            let start = values.as_ptr();
            // SAFETY: see `zero`; both halves lie within the array, and the loads may be unaligned.
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
            // SAFETY: see `zero`; both halves lie within the array, and the stores may be
            // unaligned.
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

    /// One AVX-512 register of 16 lanes.
    #[derive(Clone, Copy)]
    pub struct OneOf16(__m512);

    impl Wide for OneOf16 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: code that names this type has detected AVX-512 (see the trait). The same
            // holds for all methods below.
            unsafe { Self(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see `zero`.
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: see `zero`; the array is as long as the register, and the load may be
            // unaligned.
            unsafe { Self(_mm512_loadu_ps(values.as_ptr())) }
        }

        #[inline(always)]
        fn widen(values: &[bf16; LANES]) -> Self {
            // SAFETY: see `zero`; the array is as long as half a register, and the load may be
            // unaligned.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }

        #[inline(always)]
        fn store(self, into: &mut [f32; LANES]) {
            // SAFETY: see `zero`; the array is as long as the register, and the store may be
            // unaligned.
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
            // SAFETY: a machine with AVX-512 has AVX2 (see `zero`).
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

    /// Adds the two bf16 products of each lane to its sum.
    ///
    /// # Safety
    /// The machine must have AVX512-BF16.
    #[inline(always)]
    pub unsafe fn dot_pairs(
        a: &[bf16; 2 * LANES],
        b: &[bf16; 2 * LANES],
        sums: OneOf16,
    ) -> OneOf16 {
        // SAFETY: the arrays are as long as the register, any bits are valid in it, and the machine
        // has the instruction (the caller's contract).
        unsafe {
            let pairs = |values: &[bf16; 2 * LANES]| {
                let bits = _mm512_loadu_si512(values.as_ptr().cast());
                std::mem::transmute::<__m512i, __m512bh>(bits)
            };
            OneOf16(_mm512_dpbf16_ps(sums.0, pairs(a), pairs(b)))
        }
    }

    /// Transposes a block by quarters: each is transposed, and the two off the diagonal swap
    /// places.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn transpose_by_8(block: &mut [Line; LANES]) {
        for (top, left) in [(0, 0), (8, 8), (0, 8)] {
            // SAFETY: AVX2 is available (the caller's contract).
            let (one, other) =
                unsafe { (columns_of(block, top, left), columns_of(block, left, top)) };
            for i in 0..8 {
                for (row, from, values) in [(left + i, top, one[i]), (top + i, left, other[i])] {
                    let into = &mut block[row].0[from..from + 8];
                    // SAFETY: the slice is as long as the register, and the store may be unaligned;
                    // AVX2 is available (the caller's contract).
                    unsafe { _mm256_storeu_ps(into.as_mut_ptr(), values) }
                }
            }
        }
    }

    /// The columns of the 8 × 8 values at `[top, left]`.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn columns_of(block: &[Line; LANES], top: usize, left: usize) -> [__m256; 8] {
        // SAFETY: AVX2 is available (the caller's contract).
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
        // SAFETY: AVX2 is available (the caller's contract), and each load reads a slice of eight
        // values.
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

    /// The sum of eight lanes, in the order of [`sum_lanes`](super::sum_lanes).
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[inline(always)]
    unsafe fn sum_of_8(lanes: __m256) -> f32 {
        // SAFETY: AVX2 is available (the caller's contract).
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
