//! Vectorisable elementary functions.

use super::simd::{Arithmetic, LANES, sum_lanes};

/// `e^x` within 2 ulp for x in [-87, 88]; 0 below, +inf above.
///
/// Cody and Waite's reduction `x = n·ln 2 + r`, then the degree-6 polynomial of the Cephes library
/// (`expf.c`) for `e^r`.
#[inline(always)]
pub fn exp<A: Arithmetic>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-88.0, 89.0);
    // Adding 1.5·2^23 rounds to the nearest integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = A::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = A::mul_add(n, -LN2_HIGH, clamped);
    let r = A::mul_add(n, -LN2_LOW, r);
    let mut p = 1.987_569_1e-4;
    p = A::mul_add(p, r, 1.398_2e-3);
    p = A::mul_add(p, r, 8.333_452e-3);
    p = A::mul_add(p, r, 4.166_579_6e-2);
    p = A::mul_add(p, r, 1.666_666_5e-1);
    p = A::mul_add(p, r, 0.5);
    let e = A::mul_add(p * r, r, r) + 1.0;
    // 2^n as a product of two factors, because 2^128 is not an f32.
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let result = e * power(half) * power(n - half);
    if x < -87.0 {
        0.0
    } else if x > 88.8 {
        f32::INFINITY
    } else {
        result
    }
}

/// Replaces each score by `e^(score − max)`, where `max` is the largest score. Returns `max` and
/// the sum of the new values. The length must be a multiple of [`LANES`].
#[inline(always)]
pub fn exponentials<A: Arithmetic>(scores: &mut [f32]) -> (f32, f32) {
    let max = largest(scores);
    let mut sums = [0f32; LANES];
    for scores in scores.chunks_exact_mut(LANES) {
        for l in 0..LANES {
            scores[l] = exp::<A>(scores[l] - max);
            sums[l] += scores[l];
        }
    }
    (max, sum_lanes(sums))
}

/// The largest value of a slice whose length is a multiple of [`LANES`]; −∞ if it is empty.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    for values in values.chunks_exact(LANES) {
        for l in 0..LANES {
            max[l] = if values[l] > max[l] {
                values[l]
            } else {
                max[l]
            };
        }
    }
    max.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::simd::{Fused, Unfused};
    use proptest::prelude::*;

    fn close(got: f32, x: f32) -> bool {
        let want = f64::from(x).exp();
        (f64::from(got) - want).abs() <= 2.5 * f64::from(f32::EPSILON) * want
    }

    proptest! {
        #[test]
        fn exp_is_within_two_units(x in -86.9f32..88.0) {
            prop_assert!(close(exp::<Fused>(x), x));
            prop_assert!(close(exp::<Unfused>(x), x));
        }
    }

    #[test]
    fn exp_at_its_limits() {
        assert_eq!(exp::<Fused>(0.0), 1.0);
        assert_eq!(exp::<Fused>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<Fused>(-200.0), 0.0);
        assert_eq!(exp::<Fused>(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp::<Fused>(200.0), f32::INFINITY);
        assert!(exp::<Fused>(f32::NAN).is_nan());
    }
}
