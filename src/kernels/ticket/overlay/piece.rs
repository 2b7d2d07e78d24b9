//! The CPU's work on a ragged batch: a few rows under one ticket at a time.

use std::ops::Range;

use super::by_column::ByColumn;
use super::by_row::ByRow;
use super::layout::{Order, OverlayLayout};
use crate::kernels::cpu::parallel::Scattered;
use crate::kernels::cpu::simd::dispatch;
use crate::ticket::{Columns, Deltas};

/// Rows under a ticket, with the arrangement of one weight.
#[derive(Clone)]
pub struct Part<'a> {
    pub rows: Range<usize>,
    pub layout: &'a OverlayLayout,
    pub scale: f32,
}

/// Batch rows that are taken at once at most.
pub const WIDEST: usize = 16;
/// Batch rows from which on they are taken as one vector, with `x` and `y` transposed, where there are
/// nonzeros enough.
const VECTOR_FROM: usize = 3;

/// A few rows of a batch under one ticket.
pub struct Piece<'a> {
    pub part: &'a Part<'a>,
    rows: Range<usize>,
    input: Input<'a>,
}

/// The piece's rows of `x`.
pub enum Input<'a> {
    /// As they are, `[rows, in]`.
    Rows(&'a [f32]),
    /// `[in, lanes]`, zeros where there is no row.
    Columns { values: Vec<f32>, lanes: usize },
}

impl<'a> Piece<'a> {
    /// Whether such rows are taken as one vector.
    pub fn is_vector(part: &Part, rows: &Range<usize>) -> bool {
        rows.len() >= VECTOR_FROM && part.layout.by_vector
    }

    pub fn new(part: &'a Part<'a>, rows: Range<usize>, x: &'a [f32]) -> Self {
        let inner = part.layout.inner;
        let x = &x[rows.start * inner..rows.end * inner];
        let input = if Self::is_vector(part, &rows) {
            let lanes = rows.len().next_power_of_two();
            let values = transposed(x, inner, lanes);
            Input::Columns { values, lanes }
        } else {
            Input::Rows(x)
        };
        Self { part, rows, input }
    }

    /// Adds a block's nonzeros to the piece's rows of `y`, which nobody else writes.
    pub fn add(&self, block: usize, y: &Scattered<f32>) {
        let layout = self.part.layout;
        let first = block * layout.block_rows;
        let last = layout.out.min(first + layout.block_rows);
        let out = layout.out;
        let y = self.rows.clone().map(|row| {
            // SAFETY: pieces hold different batch rows, and blocks different columns of `y`.
            unsafe { y.slice(row * out + first..row * out + last) }
        });
        let y: Vec<&mut [f32]> = y.collect();
        let (scale, input) = (self.part.scale, &self.input);
        macro_rules! run {
            ($columns:expr, $deltas:expr) => {
                match &layout.order {
                    Order::Column { offsets, rows } => {
                        let range = offsets[block]..offsets[block + 1];
                        dispatch(ByColumn {
                            rows: &rows[range.clone()],
                            columns: &$columns[range.clone()],
                            deltas: &$deltas[range],
                            scale,
                            input,
                            y,
                        })
                    }
                    Order::Row {
                        blocks,
                        rows,
                        offsets,
                    } => {
                        let range = blocks[block]..blocks[block + 1];
                        dispatch(ByRow {
                            rows: &rows[range.clone()],
                            offsets: &offsets[range.start..range.end + 1],
                            columns: $columns,
                            deltas: $deltas,
                            scale,
                            input,
                            y,
                        })
                    }
                }
            };
        }
        match (&layout.columns, &layout.deltas) {
            (Columns::U16(columns), Deltas::Bf16(deltas)) => run!(columns, deltas),
            (Columns::U16(columns), Deltas::F32(deltas)) => run!(columns, deltas),
            (Columns::U32(columns), Deltas::Bf16(deltas)) => run!(columns, deltas),
            (Columns::U32(columns), Deltas::F32(deltas)) => run!(columns, deltas),
        }
    }
}

/// Rows `[rows, inner]` as `[inner, lanes]`, zeros where there is no row.
fn transposed(x: &[f32], inner: usize, lanes: usize) -> Vec<f32> {
    /// Columns at a time, so that what is written stays near.
    const COLUMNS: usize = 32;
    let mut values = vec![0.0; inner * lanes];
    for (at, values) in values.chunks_mut(COLUMNS * lanes).enumerate() {
        let columns = at * COLUMNS..inner.min((at + 1) * COLUMNS);
        for (lane, row) in x.chunks_exact(inner).enumerate() {
            for (value, x) in values[lane..]
                .iter_mut()
                .step_by(lanes)
                .zip(&row[columns.clone()])
            {
                *value = *x;
            }
        }
    }
    values
}
