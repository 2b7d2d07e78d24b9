//! Sparse product over nonzeros in row order, one quad per iteration.

use super::layout::QUAD;
use super::{Input, MAX_ROWS};
use crate::kernels::cpu::element::{Column, Element};
use crate::kernels::cpu::simd::{Arithmetic, Vectorised};

/// Product of the rows of a block with one tile of batch rows.
pub struct ByRow<'a, C, D> {
    /// Rows with nonzeros, relative to the block's first row.
    pub rows: &'a [u16],
    /// `[rows + 1]`: index of each row's first nonzero in `columns` and `deltas`.
    pub offsets: &'a [usize],
    pub columns: &'a [C],
    pub deltas: &'a [D],
    pub scale: f32,
    pub input: &'a Input<'a>,
    /// The block's part of each batch row of `y`.
    pub y: Vec<&'a mut [f32]>,
}

impl<C: Column, D: Element> Vectorised for ByRow<'_, C, D> {
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

impl<C: Column, D: Element> ByRow<'_, C, D> {
    /// Rows, each with its quads of columns and deltas.
    #[inline(always)]
    fn quads(
        &self,
    ) -> impl Iterator<Item = (usize, impl Iterator<Item = (&[C; QUAD], [f32; QUAD])>)> {
        let bounds = self.rows.iter().zip(self.offsets.windows(2));
        bounds.map(|(row, bounds)| {
            let (columns, _) = self.columns[bounds[0]..bounds[1]].as_chunks();
            let (deltas, _) = self.deltas[bounds[0]..bounds[1]].as_chunks::<QUAD>();
            let deltas = deltas.iter().map(|deltas| deltas.map(D::widen));
            (usize::from(*row), columns.iter().zip(deltas))
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
                    for (row, quads) in self.quads() {
                        let mut sums = [[0f32; QUAD]; 2];
                        for (columns, deltas) in quads {
                            for i in 0..QUAD {
                                let column = columns[i].index();
                                sums[0][i] = A::mul_add(deltas[i], x[column], sums[0][i]);
                                sums[1][i] = A::mul_add(deltas[i], x_second[column], sums[1][i]);
                            }
                        }
                        first[row] = A::mul_add(self.scale, total(sums[0]), first[row]);
                        second[row] = A::mul_add(self.scale, total(sums[1]), second[row]);
                    }
                }
                rows => {
                    for y in rows {
                        for (row, quads) in self.quads() {
                            let mut sums = [0f32; QUAD];
                            for (columns, deltas) in quads {
                                for i in 0..QUAD {
                                    let x = x[columns[i].index()];
                                    sums[i] = A::mul_add(deltas[i], x, sums[i]);
                                }
                            }
                            y[row] = A::mul_add(self.scale, total(sums), y[row]);
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
        for (row, quads) in self.quads() {
            let mut sums = [[0f32; LANES]; QUAD];
            for (columns, deltas) in quads {
                for i in 0..QUAD {
                    let x = &x[columns[i].index()];
                    for lane in 0..LANES {
                        sums[i][lane] = A::mul_add(deltas[i], x[lane], sums[i][lane]);
                    }
                }
            }
            for (lane, y) in y.iter_mut().enumerate() {
                let sum = total(sums.map(|sums| sums[lane]));
                y[row] = A::mul_add(self.scale, sum, y[row]);
            }
        }
    }
}

/// Sum of a quad, in a fixed order.
#[inline(always)]
fn total([a, b, c, d]: [f32; QUAD]) -> f32 {
    (a + c) + (b + d)
}
