//! The CPU's work on a ragged batch: tiles of a few rows under one ticket.

use std::ops::Range;

use super::by_column::ByColumn;
use super::by_row::ByRow;
use super::layout::{Order, OverlayLayout};
use crate::kernels::cpu::parallel::Scattered;
use crate::kernels::cpu::simd::dispatch;
use crate::ticket::{Columns, Deltas};

/// Batch rows under one ticket, with the ticket's layout of one weight.
#[derive(Clone)]
pub struct Segment<'a> {
    pub rows: Range<usize>,
    pub layout: &'a OverlayLayout,
    pub scale: f32,
}

/// Batch rows per tile, at most.
pub const MAX_ROWS: usize = 16;
/// Batch rows per tile from which on they are computed as one vector, with `x` and `y` transposed,
/// if the layout has enough nonzeros.
const MIN_TRANSPOSED_ROWS: usize = 3;

/// A few rows of a segment.
pub struct Tile<'a> {
    pub segment: &'a Segment<'a>,
    rows: Range<usize>,
    input: Input<'a>,
}

/// The tile's rows of `x`.
pub enum Input<'a> {
    /// Unchanged, `[rows, in]`.
    Rows(&'a [f32]),
    /// Transposed, `[in, lanes]`, with zeros in the lanes beyond the rows.
    Transposed { values: Vec<f32>, lanes: usize },
}

impl<'a> Tile<'a> {
    /// Whether the rows are computed as one vector.
    pub fn is_transposed(segment: &Segment, rows: &Range<usize>) -> bool {
        rows.len() >= MIN_TRANSPOSED_ROWS && segment.layout.worth_transposing
    }

    /// Tile of those rows of the segment, for all rows of `x`.
    pub fn new(segment: &'a Segment<'a>, rows: Range<usize>, x: &'a [f32]) -> Self {
        let inner = segment.layout.inner;
        let x = &x[rows.start * inner..rows.end * inner];
        let input = if Self::is_transposed(segment, &rows) {
            let lanes = rows.len().next_power_of_two();
            let values = transposed(x, inner, lanes);
            Input::Transposed { values, lanes }
        } else {
            Input::Rows(x)
        };
        Self {
            segment,
            rows,
            input,
        }
    }

    /// Adds the nonzeros of a block to the tile's rows of `y`. No other thread may add the same
    /// block.
    pub fn add(&self, block: usize, y: &Scattered<f32>) {
        let layout = self.segment.layout;
        let first = block * layout.block_rows;
        let last = layout.out.min(first + layout.block_rows);
        let out = layout.out;
        let y = self.rows.clone().map(|row| {
            // SAFETY: tiles have different batch rows, and blocks different columns of `y`.
            unsafe { y.slice(row * out + first..row * out + last) }
        });
        let y: Vec<&mut [f32]> = y.collect();
        let (scale, input) = (self.segment.scale, &self.input);
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

/// Rows `[rows, inner]` as `[inner, lanes]`, with zeros in the lanes beyond the rows.
fn transposed(x: &[f32], inner: usize, lanes: usize) -> Vec<f32> {
    /// Columns per pass, so that the written values stay in the cache.
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
