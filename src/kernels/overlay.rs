//! Sparse products beside a dense one: `y[rows] += scale·x[rows]·Δᵀ`, for a batch whose rows are under
//! different tickets.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use super::element::{Column, Element, elements, elements_mut};
use super::parallel::{Scattered, for_each_range};
use super::simd::{Arithmetic, Vectorised, dispatch};
use crate::ticket::{Columns, DeltaDtype, Deltas, MAX_U16_COLUMNS, TensorDelta};

/// The deltas of one weight `[out, in]`, arranged to be walked by column: the nonzeros of a block of
/// output rows lie together, ordered by column, then row. In row order each sum would wait for its
/// last addition, and every row would be visited for the few nonzeros that it has.
pub struct OverlayLayout {
    out: usize,
    inner: usize,
    /// Output rows of a block, the last one may have fewer.
    block_rows: usize,
    /// `[blocks + 1]`: the nonzeros of block `b` are `offsets[b]..offsets[b + 1]`.
    offsets: Vec<usize>,
    /// `[nnz]`: counted from the block's first row.
    rows: Vec<u16>,
    columns: Columns,
    deltas: Deltas,
}

/// Output rows of a block at most: the sums of [`WIDEST`] batch rows take 16 KiB then, half of a small
/// first-level cache.
const BLOCK_ROWS: usize = 256;
/// Blocks that a weight is cut into where it has the nonzeros for them, so that several cores have work.
const BLOCKS: usize = 8;
/// Nonzeros below which a block is not cut further.
const BLOCK_NONZEROS: usize = 1024;

impl OverlayLayout {
    /// Arranges the deltas of the parameters that a weight `[out, in]` is fused of, each with the row
    /// that it begins at, ascending.
    ///
    /// # Panics
    /// If a delta reaches beyond the weight, which a ticket that is bound to its base rules out.
    pub fn new([out, inner]: [usize; 2], parts: &[(usize, &TensorDelta)]) -> Self {
        let nonzeros: usize = parts.iter().map(|(_, delta)| delta.nonzeros()).sum();
        let blocks = (nonzeros / BLOCK_NONZEROS).clamp(1, BLOCKS);
        let block_rows = out.div_ceil(blocks.max(out.div_ceil(BLOCK_ROWS))).max(1);
        let blocks = out.div_ceil(block_rows);
        let entries = || {
            parts.iter().flat_map(|&(first, delta)| {
                let entries = delta.entries();
                entries.map(move |(row, column, delta)| (first + row, column, delta))
            })
        };
        // Where the nonzeros of each block and column go.
        let mut places = vec![0usize; blocks * inner + 1];
        for (row, column, _) in entries() {
            assert!(row < out && column < inner, "a delta beyond its weight");
            places[row / block_rows * inner + column + 1] += 1;
        }
        for i in 1..places.len() {
            places[i] += places[i - 1];
        }
        let offsets = (0..=blocks).map(|block| places[block * inner]).collect();
        let mut rows = vec![0u16; nonzeros];
        let mut columns = vec![0u32; nonzeros];
        let mut deltas = vec![0f32; nonzeros];
        for (row, column, delta) in entries() {
            let place = &mut places[row / block_rows * inner + column];
            // Lossless: a block has at most BLOCK_ROWS rows, and tickets keep columns in u32 at most.
            rows[*place] = (row % block_rows) as u16;
            columns[*place] = column as u32;
            deltas[*place] = delta;
            *place += 1;
        }
        Self {
            out,
            inner,
            block_rows,
            offsets,
            rows,
            columns: if inner <= MAX_U16_COLUMNS {
                Columns::U16(columns.into_iter().map(|column| column as u16).collect())
            } else {
                Columns::U32(columns)
            },
            deltas: Deltas::from_f32(deltas, widest(parts)),
        }
    }

    pub fn nonzeros(&self) -> usize {
        self.rows.len()
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let nonzero = size_of::<u16>() + self.columns.size() + self.deltas.dtype().size();
        size_of_val(&self.offsets[..]) + self.nonzeros() * nonzero
    }

    /// Heap bytes of what [`Self::new`] makes of the same, at most.
    pub fn bytes_for([out, inner]: [usize; 2], parts: &[(usize, &TensorDelta)]) -> usize {
        let nonzeros: usize = parts.iter().map(|(_, delta)| delta.nonzeros()).sum();
        let column = if inner <= MAX_U16_COLUMNS {
            size_of::<u16>()
        } else {
            size_of::<u32>()
        };
        let offsets = out.div_ceil(BLOCK_ROWS).max(BLOCKS) + 1;
        let nonzero = size_of::<u16>() + column + widest(parts).size();
        offsets * size_of::<usize>() + nonzeros * nonzero
    }
}

/// A dtype that holds all of the deltas.
fn widest(parts: &[(usize, &TensorDelta)]) -> DeltaDtype {
    let wide = |(_, delta): &(usize, &TensorDelta)| delta.deltas().dtype() == DeltaDtype::F32;
    if parts.iter().any(wide) {
        DeltaDtype::F32
    } else {
        DeltaDtype::Bf16
    }
}

/// Rows of a batch that are under one ticket.
pub struct OverlayRows<'a> {
    pub rows: Range<usize>,
    pub layout: &'a OverlayLayout,
    pub scale: f32,
}

/// `y[rows] += scale·x[rows]·Δᵀ` for each of `parts`, whose rows ascend and do not overlap; `x` is
/// `[rows, in]`, `y` is `[rows, out]`, in f32.
///
/// The nonzeros of a row of the weight are added one after the other, by ascending column, whatever
/// the number of batch rows: a row's result does not depend on the batch that it is in.
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
        let pieces: Vec<_> = pieces.collect();
        let pieces: Vec<Piece> = pieces
            .into_par_iter()
            .map(|(part, rows)| Piece::new(part, rows, x))
            .collect();
        let blocks = |(piece, of): (usize, &Piece)| {
            (0..of.part.layout.offsets.len() - 1).map(move |block| (piece, block))
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
/// Batch rows from which on they are taken as one vector, with `x` and `y` transposed.
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
    fn new(part: &'a OverlayRows<'a>, rows: Range<usize>, x: &'a [f32]) -> Self {
        let inner = part.layout.inner;
        let x = &x[rows.start * inner..rows.end * inner];
        let input = if rows.len() < VECTOR_FROM {
            Input::Rows(x)
        } else {
            let lanes = rows.len().next_power_of_two();
            let mut values = vec![0.0; inner * lanes];
            for (lane, row) in x.chunks_exact(inner).enumerate() {
                for (column, &value) in row.iter().enumerate() {
                    values[column * lanes + lane] = value;
                }
            }
            Input::Columns { values, lanes }
        };
        Self { part, rows, input }
    }

    /// Adds a block's nonzeros to the piece's rows of `y`, which nobody else writes.
    fn add(&self, block: usize, y: &Scattered<f32>) {
        let layout = self.part.layout;
        let range = layout.offsets[block]..layout.offsets[block + 1];
        if range.is_empty() {
            return;
        }
        let first = block * layout.block_rows;
        let last = layout.out.min(first + layout.block_rows);
        let out = layout.out;
        let y = self.rows.clone().map(|row| {
            // SAFETY: pieces hold different batch rows, and blocks different columns of `y`.
            unsafe { y.slice(row * out + first..row * out + last) }
        });
        let y: Vec<&mut [f32]> = y.collect();
        let rows = &layout.rows[range.clone()];
        let (scale, input) = (self.part.scale, &self.input);
        macro_rules! run {
            ($columns:expr, $deltas:expr) => {
                dispatch(Block {
                    rows,
                    columns: &$columns[range.clone()],
                    deltas: &$deltas[range],
                    scale,
                    input,
                    y,
                })
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

/// One block's nonzeros, for the rows of one piece.
struct Block<'a, C, D> {
    rows: &'a [u16],
    columns: &'a [C],
    deltas: &'a [D],
    scale: f32,
    input: &'a Input<'a>,
    /// The block's part of each batch row of `y`.
    y: Vec<&'a mut [f32]>,
}

impl<C: Column, D: Element> Vectorised for Block<'_, C, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        match self.input {
            Input::Rows(x) => self.by_row::<A>(x),
            Input::Columns { values, lanes: 4 } => self.by_vector::<A, 4>(values),
            Input::Columns { values, lanes: 8 } => self.by_vector::<A, 8>(values),
            Input::Columns { values, .. } => self.by_vector::<A, WIDEST>(values),
        }
    }
}

impl<C: Column, D: Element> Block<'_, C, D> {
    /// `(row in the block, column, scale·δ)`.
    #[inline(always)]
    fn nonzeros(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        let places = self.rows.iter().zip(self.columns);
        places.zip(self.deltas).map(|((row, column), delta)| {
            (
                usize::from(*row),
                column.index(),
                self.scale * delta.widen(),
            )
        })
    }

    #[inline(always)]
    fn by_row<A: Arithmetic>(mut self, x: &[f32]) {
        let inner = x.len() / self.y.len();
        let mut y = std::mem::take(&mut self.y);
        match &mut y[..] {
            [first, second] => {
                let (x, x_second) = x.split_at(inner);
                for (row, column, delta) in self.nonzeros() {
                    first[row] = A::mul_add(delta, x[column], first[row]);
                    second[row] = A::mul_add(delta, x_second[column], second[row]);
                }
            }
            rows => {
                for (y, x) in rows.iter_mut().zip(x.chunks_exact(inner)) {
                    for (row, column, delta) in self.nonzeros() {
                        y[row] = A::mul_add(delta, x[column], y[row]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn by_vector<A: Arithmetic, const LANES: usize>(mut self, x: &[f32]) {
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

#[cfg(test)]
mod tests;
