//! Sparse products beside a dense one: `y[rows] += scale·x[rows]·Δᵀ`, for a batch whose rows are under
//! different tickets.

mod by_column;
mod by_row;
mod layout;

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::element::{elements, elements_mut};
use super::parallel::{Scattered, for_each_range};
use super::simd::dispatch;
use crate::ticket::{Columns, Deltas};
use by_column::ByColumn;
use by_row::ByRow;
use layout::Order;
pub use layout::OverlayLayout;

/// Rows of a batch that are under one ticket.
pub struct OverlayRows<'a> {
    pub rows: Range<usize>,
    pub layout: &'a OverlayLayout,
    pub scale: f32,
}

/// `y[rows] += scale·x[rows]·Δᵀ` for each of `parts`, whose rows ascend and do not overlap; `x` is
/// `[rows, in]`, `y` is `[rows, out]`, in f32.
///
/// The nonzeros of a row of the weight are added in one order, whatever the number of batch rows: a
/// row's result does not depend on the batch that it is in.
///
/// # Errors
/// If shapes do not fit.
pub fn overlay(y: &Tensor, x: &Tensor, parts: &[OverlayRows]) -> Result<()> {
    y.inplace_op2(x, &Overlay { parts })
}

struct Overlay<'a> {
    parts: &'a [OverlayRows<'a>],
}

impl InplaceOp2 for Overlay<'_> {
    fn name(&self) -> &'static str {
        "ticket-overlay"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let (rows, out) = y_layout.shape().dims2()?;
        let (x_rows, inner) = x_layout.shape().dims2()?;
        let mut free = 0;
        for OverlayRows { rows, layout, .. } in self.parts {
            let ordered = free <= rows.start && rows.start <= rows.end;
            if !ordered || rows.end > x_rows || [layout.out, layout.inner] != [out, inner] {
                candle_core::bail!(
                    "overlay: rows {rows:?} of a delta [{}, {}] for x [{x_rows}, {inner}] and y \
                     [{rows_of_y}, {out}]",
                    layout.out,
                    layout.inner,
                    rows_of_y = y_layout.shape().dims()[0],
                );
            }
            free = rows.end;
        }
        if rows != x_rows {
            candle_core::bail!("overlay: x has {x_rows} rows, y {rows}");
        }
        let x = elements::<f32>(x, x_layout)?;
        let y = Scattered::new(elements_mut::<f32>(y, y_layout)?);
        let pieces = self.parts.iter().flat_map(|part| {
            let starts = part.rows.clone().step_by(WIDEST);
            starts.map(move |start| (part, start..part.rows.end.min(start + WIDEST)))
        });
        let parts: Vec<_> = pieces.collect();
        let mut pieces: Vec<Option<Piece>> = parts.iter().map(|_| None).collect();
        let made = Scattered::new(&mut pieces);
        let transposes = parts
            .iter()
            .any(|(part, rows)| Piece::is_vector(part, rows));
        let grain = if transposes { 1 } else { parts.len() };
        for_each_range(parts.len(), grain, |range| {
            for at in range {
                let (part, rows) = &parts[at];
                // SAFETY: each piece is made once.
                unsafe { made.write(at, Some(Piece::new(part, rows.clone(), x))) };
            }
        });
        let pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
        let blocks = |(piece, of): (usize, &Piece)| {
            (0..of.part.layout.blocks()).map(move |block| (piece, block))
        };
        let tasks: Vec<_> = pieces.iter().enumerate().flat_map(blocks).collect();
        for_each_range(tasks.len(), 1, |range| {
            for &(piece, block) in &tasks[range] {
                pieces[piece].add(block, &y);
            }
        });
        Ok(())
    }
}

/// Batch rows that are taken at once at most.
const WIDEST: usize = 16;
/// Batch rows from which on they are taken as one vector, with `x` and `y` transposed, where there are
/// nonzeros enough.
const VECTOR_FROM: usize = 3;

/// A few rows of a batch under one ticket.
struct Piece<'a> {
    part: &'a OverlayRows<'a>,
    rows: Range<usize>,
    input: Input<'a>,
}

/// The piece's rows of `x`.
enum Input<'a> {
    /// As they are, `[rows, in]`.
    Rows(&'a [f32]),
    /// `[in, lanes]`, zeros where there is no row.
    Columns { values: Vec<f32>, lanes: usize },
}

impl<'a> Piece<'a> {
    /// Whether such rows are taken as one vector.
    fn is_vector(part: &OverlayRows, rows: &Range<usize>) -> bool {
        rows.len() >= VECTOR_FROM && part.layout.by_vector
    }

    fn new(part: &'a OverlayRows<'a>, rows: Range<usize>, x: &'a [f32]) -> Self {
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
    fn add(&self, block: usize, y: &Scattered<f32>) {
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

#[cfg(test)]
mod tests;
