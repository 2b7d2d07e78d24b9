//! The product for few rows of `x`, by register tiles of dot products.

use super::packed::{PAIR, Packed};
use crate::kernels::cpu::element::Element;
use crate::kernels::cpu::simd::{Arithmetic, LANES, Line, Vectorised, Wide, prefetch};

/// Activations in the layout of [`Panel`].
pub type Rows = Packed<f32, LANES>;

/// The product of all rows of `x` with weight rows `[out, inner]`. `store` receives each element as
/// `(row of x, weight row, value)`.
pub struct Panel<'a, W, F> {
    pub x: &'a Rows,
    pub weight: &'a [W],
    pub inner: usize,
    pub store: F,
}

impl<W: Element, F: Fn(usize, usize, f32)> Vectorised for Panel<'_, W, F> {
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

impl<W: Element, F: Fn(usize, usize, f32)> Panel<'_, W, F> {
    /// Multiplies `O` weight rows at a time, then the remaining ones one by one.
    #[inline(always)]
    fn tiles<A: Arithmetic, const O: usize>(&self) {
        let out = self.weight.len() / self.inner;
        // Widening the weights once serves many rows, but for few rows the extra pass costs more.
        let few = if size_of::<W>() < size_of::<f32>() {
            4
        } else {
            12
        };
        let direct = self.x.rows() <= few && self.inner.is_multiple_of(LANES);
        let whole = out - out % O;
        if direct {
            for o in (0..whole).step_by(O) {
                self.direct::<A, O>(o);
            }
            for o in whole..out {
                self.direct::<A, 1>(o);
            }
            return;
        }
        let mut scratch = vec![[Line([0.0; LANES]); O]; self.x.steps()];
        for rows in self.x.blocks() {
            for o in (0..whole).step_by(O) {
                self.widened::<A, O>(o, rows.clone(), &mut scratch);
            }
            let scratch = scratch.as_flattened_mut().as_chunks_mut::<1>().0;
            for o in whole..out {
                self.widened::<A, 1>(o, rows.clone(), scratch);
            }
        }
    }

    /// Multiplies `O` weight rows, widened on the fly, by all rows. The first rows of `x` also
    /// prefetch the next weights.
    #[inline(always)]
    fn direct<A: Arithmetic, const O: usize>(&self, o: usize) {
        let inner = self.inner;
        let weights: [&[[W; LANES]]; O] = std::array::from_fn(|i| {
            self.weight[(o + i) * inner..(o + i + 1) * inner]
                .as_chunks()
                .0
        });
        let next = (o + O) * inner;
        let ahead = |step: usize, i: usize| {
            prefetch(self.weight, next + i * inner + step * LANES);
            W::widen_lanes(&weights[i][step])
        };
        let again = |step: usize, i: usize| W::widen_lanes(&weights[i][step]);
        let rows = self.x.rows();
        let mut row = 0;
        if rows >= PAIR {
            self.tile::<A, O, PAIR>(o, 0, ahead);
            row = PAIR;
        }
        while row + PAIR <= rows {
            self.tile::<A, O, PAIR>(o, row, again);
            row += PAIR;
        }
        if rows == 1 {
            self.tile::<A, O, 1>(o, 0, ahead);
        } else if row < rows {
            self.tile::<A, O, 1>(o, row, again);
        }
    }

    /// Widens `O` weight rows into `scratch` and multiplies them by `rows` of `x`. Each tile also
    /// prefetches a part of the next weights.
    #[inline(always)]
    fn widened<A: Arithmetic, const O: usize>(
        &self,
        o: usize,
        rows: std::ops::Range<usize>,
        scratch: &mut [[Line; O]],
    ) {
        let inner = self.inner;
        let scratch = &mut scratch[..self.x.steps()];
        for i in 0..O {
            let weights = &self.weight[(o + i) * inner..(o + i + 1) * inner];
            let (whole, rest) = weights.as_chunks();
            for (line, weights) in scratch.iter_mut().zip(whole) {
                W::widen_lanes::<A::Wide>(weights).store(&mut line[i].0);
            }
            if let (Some(line), false) = (scratch.last_mut(), rest.is_empty()) {
                line[i] = Line([0.0; LANES]);
                for (value, weight) in line[i].0.iter_mut().zip(rest) {
                    *value = weight.widen();
                }
            }
        }
        let scratch = &*scratch;
        let weight = |step: usize, i: usize| A::Wide::load(&scratch[step][i].0);
        let tiles = rows.len().div_ceil(PAIR);
        let next = (o + O) * inner;
        for (tile, row) in rows.clone().step_by(PAIR).enumerate() {
            let part = O * inner * tile / tiles..O * inner * (tile + 1) / tiles;
            for at in part.step_by(64 / size_of::<W>()) {
                prefetch(self.weight, next + at);
            }
            if row + PAIR <= rows.end {
                self.tile::<A, O, PAIR>(o, row, weight);
            } else {
                self.tile::<A, O, 1>(o, row, weight);
            }
        }
    }

    /// `O × R` dot products over `inner`, each in [`LANES`] partial sums.
    #[inline(always)]
    fn tile<A: Arithmetic, const O: usize, const R: usize>(
        &self,
        o: usize,
        row: usize,
        weight: impl Fn(usize, usize) -> A::Wide,
    ) {
        let mut sums = [[A::Wide::zero(); R]; O];
        for (step, x) in self.x.tile::<R>(row).iter().enumerate() {
            let x: [A::Wide; R] = std::array::from_fn(|r| A::Wide::load(&x[r].0));
            for (i, sums) in sums.iter_mut().enumerate() {
                let weight = weight(step, i);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weight.mul_add(x, *sum);
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
