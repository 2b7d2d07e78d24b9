//! The product of bf16 weights on machines with a bf16 dot-product instruction: `x` is rounded to
//! bf16, and sums are f32.

use half::bf16;

use super::packed::{PAIR, Packed};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, Wide, prefetch};

/// Activations in the layout of [`Pairs`]: a line holds two values per lane.
pub type Rows = Packed<bf16, { 2 * LANES }>;

/// Like [`super::panel::Panel`], by pairs of bf16.
pub struct Pairs<'a, F> {
    pub x: &'a Rows,
    pub weight: &'a [bf16],
    pub inner: usize,
    pub store: F,
}

impl<F: Fn(usize, usize, f32)> Vectorised for Pairs<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        // As many sums as fit in registers.
        if A::SUMS >= 8 * PAIR {
            self.tiles::<A, 8>();
        } else {
            self.tiles::<A, 3>();
        }
    }
}

impl<F: Fn(usize, usize, f32)> Pairs<'_, F> {
    /// Multiplies `O` weight rows at a time, then the remaining ones one by one.
    #[inline(always)]
    fn tiles<A: Arithmetic, const O: usize>(&self) {
        let out = self.weight.len() / self.inner;
        let whole = out - out % O;
        for rows in self.x.blocks() {
            for o in (0..whole).step_by(O) {
                self.rows::<A, O>(o, rows.clone());
            }
            for o in whole..out {
                self.rows::<A, 1>(o, rows.clone());
            }
        }
    }

    /// Multiplies `O` weight rows by `rows` of `x`.
    #[inline(always)]
    fn rows<A: Arithmetic, const O: usize>(&self, o: usize, rows: std::ops::Range<usize>) {
        // The first rows also prefetch the next weights.
        let mut ahead = (o + O) * self.inner;
        for row in rows.clone().step_by(PAIR) {
            if row + PAIR <= rows.end {
                self.tile::<A, O, PAIR>(o, row, ahead);
            } else {
                self.tile::<A, O, 1>(o, row, ahead);
            }
            ahead = self.weight.len();
        }
    }

    /// `O × R` dot products over `inner`, each in [`LANES`] partial sums of pairs.
    #[inline(always)]
    fn tile<A: Arithmetic, const O: usize, const R: usize>(
        &self,
        o: usize,
        row: usize,
        ahead: usize,
    ) {
        let inner = self.inner;
        let weights: [(&[[bf16; 2 * LANES]], &[bf16]); O] =
            std::array::from_fn(|i| self.weight[(o + i) * inner..(o + i + 1) * inner].as_chunks());
        let mut sums = [[A::Wide::zero(); R]; O];
        let x = self.x.tile::<R>(row);
        let whole = inner / (2 * LANES);
        for (step, x) in x[..whole].iter().enumerate() {
            for (i, sums) in sums.iter_mut().enumerate() {
                prefetch(self.weight, ahead + i * inner + step * 2 * LANES);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = A::dot_pairs(&weights[i].0[step], &x.0, *sum);
                }
            }
        }
        for x in &x[whole..] {
            for (i, sums) in sums.iter_mut().enumerate() {
                let mut last = [bf16::ZERO; 2 * LANES];
                last[..inner % (2 * LANES)].copy_from_slice(weights[i].1);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = A::dot_pairs(&last, &x.0, *sum);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                (self.store)(row + r, o + i, sum.sum());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::kernels::cpu::simd::Fused;

    /// The product on any machine, by the stand-in for the instruction.
    fn product(x: &[f32], weight: &[bf16], inner: usize) -> Vec<f32> {
        let (rows, out) = (x.len() / inner, weight.len() / inner);
        let y = RefCell::new(vec![f32::NAN; rows * out]);
        let pairs = Pairs {
            x: &Rows::new(x, inner),
            weight,
            inner,
            store: |row, o, value| y.borrow_mut()[row * out + o] = value,
        };
        pairs.run::<Fused>();
        y.into_inner()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn equals_the_product_of_rounded_values_and_ignores_the_batch(
            rows in 1usize..9, inner in 1usize..150, out in 1usize..30, seed: u64,
        ) {
            let value = |i: usize| ((i as u64 ^ seed) % 1013) as f32 / 500.0 - 1.0;
            let x: Vec<f32> = (0..rows * inner).map(value).collect();
            let weight = (0..out * inner).map(|i| bf16::from_f32(value(i + 7)));
            let weight: Vec<bf16> = weight.collect();
            let got = product(&x, &weight, inner);
            for (row, x) in x.chunks(inner).enumerate() {
                for (o, weight) in weight.chunks(inner).enumerate() {
                    let pairs = x.iter().zip(weight);
                    let want: f64 = pairs
                        .map(|(x, w)| f64::from(bf16::from_f32(*x)) * f64::from(*w))
                        .sum();
                    prop_assert!((f64::from(got[row * out + o]) - want).abs() < 1e-3);
                }
                prop_assert_eq!(&got[row * out..][..out], &product(x, &weight, inner)[..]);
            }
        }
    }
}
