//! Tiles of the overlay on the CPU: a few batch rows with the same ticket.

use std::ops::Range;

use super::by_column::ByColumn;
use super::by_row::ByRow;
use super::layout::{Order, OverlayLayout};
use crate::kernels::cpu::parallel::Scattered;
use crate::kernels::cpu::simd::dispatch;
use crate::ticket::{Columns, Deltas};

/// Batch rows with the same ticket, and the ticket's layout of one weight.
#[derive(Clone)]
pub struct Segment<'a> {
    pub rows: Range<usize>,
    pub layout: &'a OverlayLayout,
    pub scale: f32,
}

/// Maximum batch rows per tile.
pub const MAX_ROWS: usize = 16;
/// Minimum batch rows per tile to compute them as one vector, with `x` and `y` transposed, if the
/// layout is dense enough.
const MIN_TRANSPOSED_ROWS: usize = 3;

/// A few rows of a segment.
pub struct Tile<'a> {
    pub segment: &'a Segment<'a>,
    rows: Range<usize>,
    input: Input<'a>,
}

/// Rows of `x` of a tile.
pub enum Input<'a> {
    /// `[rows, in]`, as given.
    Rows(&'a [f32]),
    /// `[in, lanes]`, with zeros in the lanes past the last row.
    Transposed { values: Vec<f32>, lanes: usize },
}

impl<'a> Tile<'a> {
    /// Whether a tile of these rows computes them as one vector.
    pub fn is_transposed(segment: &Segment, rows: &Range<usize>) -> bool {
        rows.len() >= MIN_TRANSPOSED_ROWS && segment.layout.worth_transposing
    }

    /// Tile of `rows` of the segment; `x` has all rows of the batch.
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

    /// Adds the products of a block's nonzeros to the tile's rows of `y`. No other thread may add
    /// the same block at the same time.
    pub fn add(&self, block: usize, y: &Scattered<f32>) {
        let layout = self.segment.layout;
        let first = block * layout.block_rows;
        let last = layout.out.min(first + layout.block_rows);
        let out = layout.out;
        let y = self.rows.clone().map(|row| {
            // SAFETY: tiles have distinct batch rows, and blocks have distinct columns of `y`.
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

/// Transposes `[rows, inner]` to `[inner, lanes]`, with zeros in the lanes past the last row.
fn transposed(x: &[f32], inner: usize, lanes: usize) -> Vec<f32> {
    /// Columns per pass, so that written cache lines stay in the L1 cache.
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
