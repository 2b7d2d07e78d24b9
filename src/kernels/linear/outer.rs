//! The product for many rows of `x`, by outer products: a vector holds the same partial sum of
//! [`LANES`] weight rows.
//!
//! A [`Panel`](super::panel::Panel) reads less before it can start, this one reads less while it
//! multiplies. Both compute each sum in the same order.

use std::ops::Range;

use crate::kernels::cpu::element::Element;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{
    Arithmetic, LANES, Line, Vectorised, Wide, dispatch, prefetch, tree,
};

/// Smallest number of rows of `x` for which transposing the weights pays off.
pub const MIN_ROWS: usize = 96;

/// Smallest number of row groups that a thread arranges.
const GRAIN: usize = 4;

/// Activations `[rows, inner]` in the layout of [`Outer`]: `[group, lane, step, row]`, so that the
/// factors of each partial sum are contiguous within a group of rows. Padded with zeros.
pub struct Rows {
    values: Vec<f32>,
    rows: usize,
    /// Number of terms of each partial sum.
    steps: usize,
    /// Rows per group.
    group_rows: usize,
}

/// Rows per group: rows of `x` that are multiplied together, each with one sum in a register.
const fn group_rows<A: Arithmetic>() -> usize {
    if A::SUMS >= GROUP_ROWS_AVX512 {
        GROUP_ROWS_AVX512
    } else {
        GROUP_ROWS
    }
}

/// [`group_rows`] with AVX-512 registers, of which two are left for the factors.
const GROUP_ROWS_AVX512: usize = 14;
/// [`group_rows`] on other instruction sets.
const GROUP_ROWS: usize = 6;

/// Returns [`group_rows`] of the dispatched instruction set.
struct GroupRows;

impl Vectorised for GroupRows {
    type Output = usize;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> usize {
        group_rows::<A>()
    }
}

impl Rows {
    /// Arranges `x` `[rows, inner]` for this machine.
    pub fn new(x: &[f32], inner: usize) -> Self {
        Self::in_groups(x, inner, dispatch(GroupRows))
    }

    fn in_groups(x: &[f32], inner: usize, group_rows: usize) -> Self {
        let (rows, steps) = (x.len() / inner, inner.div_ceil(LANES));
        let groups = rows.div_ceil(group_rows);
        let group = LANES * steps * group_rows;
        let mut values = vec![0.0; groups * group];
        let into = Scattered::new(&mut values);
        for_each_range(groups, GRAIN, |range| {
            for at in range {
                // SAFETY: each group is arranged by one thread.
                let values = unsafe { into.slice(at * group..(at + 1) * group) };
                let x = &x[at * group_rows * inner..rows.min((at + 1) * group_rows) * inner];
                for (row, x) in x.chunks_exact(inner).enumerate() {
                    for (step, x) in x.chunks(LANES).enumerate() {
                        for (lane, x) in x.iter().enumerate() {
                            values[(lane * steps + step) * group_rows + row] = *x;
                        }
                    }
                }
            }
        });
        Self {
            values,
            rows,
            steps,
            group_rows,
        }
    }
}

/// The product of all rows of `x` with weight rows `[out, inner]`, where `out` is a multiple of
/// [`LANES`]. `store` receives [`LANES`] elements at a time as
/// `(row of x, first weight row, values)`.
pub struct Outer<'a, W, F> {
    pub x: &'a Rows,
    pub weight: &'a [W],
    pub inner: usize,
    pub store: F,
}

impl<W: Element, F: Fn(usize, usize, &[f32; LANES])> Vectorised for Outer<'_, W, F> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        if group_rows::<A>() == GROUP_ROWS_AVX512 {
            self.groups::<A, GROUP_ROWS_AVX512>();
        } else {
            self.groups::<A, GROUP_ROWS>();
        }
    }
}

impl<W: Element, F: Fn(usize, usize, &[f32; LANES])> Outer<'_, W, F> {
    #[inline(always)]
    fn groups<A: Arithmetic, const R: usize>(&self) {
        assert_eq!(
            self.x.group_rows, R,
            "activations arranged for another instruction set"
        );
        let (steps, out) = (self.x.steps, self.weight.len() / self.inner);
        let mut lines = vec![Line([0.0; LANES]); LANES * steps];
        let mut partial = [[Line([0.0; LANES]); LANES]; R];
        let groups = self.x.rows.div_ceil(R);
        for o in (0..out).step_by(LANES) {
            self.transpose::<A>(o, &mut lines);
            for (group, x) in self.x.values.chunks_exact(LANES * steps * R).enumerate() {
                let part = |group| (o + LANES) * self.inner + LANES * self.inner * group / groups;
                self.prefetch(part(group)..part(group + 1));
                let rows = group * R..self.x.rows.min((group + 1) * R);
                self.group::<A, R>(o, rows, x, &lines, &mut partial);
            }
        }
    }

    /// Prefetches a range of the weights.
    #[inline(always)]
    fn prefetch(&self, range: Range<usize>) {
        for at in range.step_by(64 / size_of::<W>()) {
            prefetch(self.weight, at);
        }
    }

    /// Widens and transposes [`LANES`] weight rows from `o` on into lines `[lane, step]`, each of
    /// which holds one column.
    #[inline(always)]
    fn transpose<A: Arithmetic>(&self, o: usize, lines: &mut [Line]) {
        let (inner, steps) = (self.inner, self.x.steps);
        let rows = |i: usize| &self.weight[(o + i) * inner..(o + i + 1) * inner];
        for step in 0..steps {
            let mut block = [Line([0.0; LANES]); LANES];
            for (i, line) in block.iter_mut().enumerate() {
                let weights = &rows(i)[step * LANES..];
                match weights.first_chunk() {
                    Some(weights) => W::widen_lanes::<A::Wide>(weights).store(&mut line.0),
                    None => {
                        for (value, weight) in line.0.iter_mut().zip(weights) {
                            *value = weight.widen();
                        }
                    }
                }
            }
            A::Wide::transpose(&mut block);
            for (lane, line) in block.into_iter().enumerate() {
                lines[lane * steps + step] = line;
            }
        }
    }

    /// Multiplies [`LANES`] weight rows by a group of rows, one partial sum after the other.
    #[inline(always)]
    fn group<A: Arithmetic, const R: usize>(
        &self,
        o: usize,
        rows: Range<usize>,
        x: &[f32],
        lines: &[Line],
        partial: &mut [[Line; LANES]; R],
    ) {
        let steps = self.x.steps;
        let lanes = lines.chunks_exact(steps).zip(x.chunks_exact(steps * R));
        for (lane, (lines, x)) in lanes.enumerate() {
            let mut sums = [A::Wide::zero(); R];
            for (line, x) in lines.iter().zip(x.as_chunks::<R>().0) {
                let weight = A::Wide::load(&line.0);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weight.mul_add(A::Wide::splat(*x), *sum);
                }
            }
            for (partial, sum) in partial.iter_mut().zip(sums) {
                sum.store(&mut partial[lane].0);
            }
        }
        for (row, partial) in rows.zip(partial) {
            let mut sums = [A::Wide::zero(); LANES];
            for (sum, line) in sums.iter_mut().zip(partial) {
                *sum = A::Wide::load(&line.0);
            }
            let mut values = [0.0; LANES];
            tree(sums, A::Wide::add).store(&mut values);
            (self.store)(row, o, &values);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::cpu::simd::Fused;
    use crate::kernels::linear::panel::{self, Panel};

    /// The product in groups of `R` rows, on any machine.
    fn outer<W: Element, const R: usize>(x: &[f32], weight: &[W], inner: usize) -> Vec<f32> {
        let (rows, out) = (x.len() / inner, weight.len() / inner);
        let y = RefCell::new(vec![f32::NAN; rows * out]);
        let outer = Outer {
            x: &Rows::in_groups(x, inner, R),
            weight,
            inner,
            store: |row, o, values: &[f32; LANES]| {
                y.borrow_mut()[row * out + o..][..LANES].copy_from_slice(values);
            },
        };
        outer.groups::<Fused, R>();
        y.into_inner()
    }

    fn by_panel<W: Element>(x: &[f32], weight: &[W], inner: usize) -> Vec<f32> {
        let (rows, out) = (x.len() / inner, weight.len() / inner);
        let y = RefCell::new(vec![f32::NAN; rows * out]);
        let panel = Panel {
            x: &panel::Rows::new(x, inner),
            weight,
            inner,
            store: |row, o, value| y.borrow_mut()[row * out + o] = value,
        };
        panel.run::<Fused>();
        y.into_inner()
    }

    fn check<W: Element>(x: &[f32], weight: &[W], inner: usize) -> Result<(), TestCaseError> {
        let want = by_panel(x, weight, inner);
        prop_assert_eq!(&outer::<W, GROUP_ROWS>(x, weight, inner), &want);
        prop_assert_eq!(&outer::<W, GROUP_ROWS_AVX512>(x, weight, inner), &want);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn equals_the_panel_bit_for_bit(
            rows in 1usize..40, inner in 1usize..100, tiles in 1usize..4, seed: u64,
        ) {
            let value = |i: usize| ((i as u64 ^ seed) % 1013) as f32 / 500.0 - 1.0;
            let x: Vec<f32> = (0..rows * inner).map(value).collect();
            let weight: Vec<f32> = (0..tiles * LANES * inner).map(|i| value(i + 7)).collect();
            check(&x, &weight, inner)?;
            let narrow: Vec<bf16> = weight.iter().copied().map(bf16::from_f32).collect();
            check(&x, &narrow, inner)?;
            let narrow: Vec<f16> = weight.iter().copied().map(f16::from_f32).collect();
            check(&x, &narrow, inner)?;
        }
    }
}
