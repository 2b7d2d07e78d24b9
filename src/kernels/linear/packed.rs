//! Activations arranged for register tiles of [`PAIR`] rows.

use std::mem::MaybeUninit;

use crate::kernels::cpu::element::Element;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, Line, Vectorised, dispatch};

/// Rows that are multiplied together.
pub const PAIR: usize = 2;

/// Smallest number of pairs that a thread arranges.
const GRAIN: usize = 8;

/// Bytes of rows that are multiplied by a range of weights at a time: half of a second-level cache.
const BLOCK_BYTES: usize = 192 << 10;

/// Rows `[rows, inner]` rounded to `T`. The lines of the two rows of a pair alternate; the last of
/// an odd number of rows stands alone. Padded with zeros to whole lines.
pub struct Packed<T, const N: usize> {
    lines: Vec<Line<T, N>>,
    rows: usize,
    /// Lines per row.
    steps: usize,
}

impl<T: Element, const N: usize> Packed<T, N> {
    /// Arranges `x` `[rows, inner]`.
    pub fn new(x: &[f32], inner: usize) -> Self {
        let (rows, steps) = (x.len() / inner, inner.div_ceil(N));
        let mut lines = Vec::with_capacity(rows * steps);
        let into = Scattered::new(&mut lines.spare_capacity_mut()[..rows * steps]);
        for_each_range(rows.div_ceil(PAIR), GRAIN, |pairs| {
            for row in pairs.map(|pair| pair * PAIR) {
                let end = rows.min(row + PAIR);
                // SAFETY: each pair is arranged by one thread.
                let lines = unsafe { into.slice(row * steps..end * steps) };
                let x = &x[row * inner..end * inner];
                dispatch(Arrange { x, inner, lines });
            }
        });
        // SAFETY: `Arrange` has written every line of every pair.
        unsafe { lines.set_len(rows * steps) };
        Self { lines, rows, steps }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Lines per row.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The lines of `R` rows (one or [`PAIR`]) from `row` on. A pair must start at an even row.
    #[inline(always)]
    pub fn tile<const R: usize>(&self, row: usize) -> &[[Line<T, N>; R]] {
        self.lines[row * self.steps..][..R * self.steps]
            .as_chunks()
            .0
    }

    /// Ranges of whole pairs that fit in a second-level cache.
    pub fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let block = BLOCK_BYTES / (self.steps * size_of::<Line<T, N>>());
        let block = block.max(PAIR).next_multiple_of(PAIR);
        let starts = (0..self.rows).step_by(block);
        starts.map(move |start| start..self.rows.min(start + block))
    }
}

/// Writes the lines of a pair, or of a single row.
struct Arrange<'a, T, const N: usize> {
    x: &'a [f32],
    inner: usize,
    lines: &'a mut [MaybeUninit<Line<T, N>>],
}

impl<T: Element, const N: usize> Vectorised for Arrange<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let rows = self.x.len() / self.inner;
        for (row, x) in self.x.chunks_exact(self.inner).enumerate() {
            let (whole, rest) = x.as_chunks::<N>();
            let mut lines = self.lines[row..].iter_mut().step_by(rows);
            for (x, line) in whole.iter().zip(&mut lines) {
                line.write(Line(x.map(T::round)));
            }
            for line in lines {
                let mut last = [T::default(); N];
                for (value, x) in last.iter_mut().zip(rest) {
                    *value = T::round(*x);
                }
                line.write(Line(last));
            }
        }
    }
}
