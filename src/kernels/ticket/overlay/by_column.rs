//! Sparse product over nonzeros in column order.

use super::{Input, MAX_ROWS};
use crate::kernels::cpu::element::{Column, Element};
use crate::kernels::cpu::simd::{Arithmetic, Vectorised};

/// Product of the nonzeros of a block with one tile of batch rows.
pub struct ByColumn<'a, C, D> {
    /// Row of each nonzero, relative to the block's first row.
    pub rows: &'a [u16],
    pub columns: &'a [C],
    pub deltas: &'a [D],
    pub scale: f32,
    pub input: &'a Input<'a>,
    /// The block's part of each batch row of `y`.
    pub y: Vec<&'a mut [f32]>,
}

impl<C: Column, D: Element> Vectorised for ByColumn<'_, C, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        match self.input {
            Input::Rows(x) => self.run_rows::<A>(x),
            Input::Transposed { values, lanes: 4 } => self.run_transposed::<A, 4>(values),
            Input::Transposed { values, lanes: 8 } => self.run_transposed::<A, 8>(values),
            Input::Transposed { values, .. } => self.run_transposed::<A, MAX_ROWS>(values),
        }
    }
}

impl<C: Column, D: Element> ByColumn<'_, C, D> {
    /// Nonzeros as `(row in the block, column, scale·δ)`.
    #[inline(always)]
    fn nonzeros(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        let positions = self.rows.iter().zip(self.columns);
        positions.zip(self.deltas).map(|((row, column), delta)| {
            (
                usize::from(*row),
                column.index(),
                self.scale * delta.widen(),
            )
        })
    }

    #[inline(always)]
    fn run_rows<A: Arithmetic>(mut self, x: &[f32]) {
        let inner = x.len() / self.y.len();
        let mut y = std::mem::take(&mut self.y);
        for (y, x) in y.chunks_mut(2).zip(x.chunks(2 * inner.max(1))) {
            match y {
                [first, second] => {
                    let (x, x_second) = x.split_at(inner);
                    for (row, column, delta) in self.nonzeros() {
                        first[row] = A::mul_add(delta, x[column], first[row]);
                        second[row] = A::mul_add(delta, x_second[column], second[row]);
                    }
                }
                rows => {
                    for y in rows {
                        for (row, column, delta) in self.nonzeros() {
                            y[row] = A::mul_add(delta, x[column], y[row]);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn run_transposed<A: Arithmetic, const LANES: usize>(mut self, x: &[f32]) {
        let (x, _) = x.as_chunks::<LANES>();
        let mut y = std::mem::take(&mut self.y);
        let rows = y.first().map_or(0, |y| y.len());
        let mut sums = vec![[0f32; LANES]; rows];
        for (lane, y) in y.iter().enumerate() {
            for (sums, value) in sums.iter_mut().zip(y.iter()) {
                sums[lane] = *value;
            }
        }
        for (row, column, delta) in self.nonzeros() {
            let (sums, x) = (&mut sums[row], &x[column]);
            for lane in 0..LANES {
                sums[lane] = A::mul_add(delta, x[lane], sums[lane]);
            }
        }
        for (lane, y) in y.iter_mut().enumerate() {
            for (sums, value) in sums.iter().zip(y.iter_mut()) {
                *value = sums[lane];
            }
        }
    }
}
