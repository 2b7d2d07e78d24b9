//! CPU layout of a ticket's deltas for one weight.

use super::WeightDeltas;
use crate::ticket::{Columns, DeltaDtype, Deltas, MAX_U16_COLUMNS, TensorDelta};

/// Deltas of one weight `[out, in]`, in blocks of output rows, in an order chosen by density.
pub struct OverlayLayout {
    pub(super) out: usize,
    pub(super) inner: usize,
    /// Output rows per block; the last block may have fewer.
    pub(super) block_rows: usize,
    nonzeros: usize,
    /// Whether the weight is dense enough to justify transposing `x` and `y` for several batch
    /// rows.
    pub(super) worth_transposing: bool,
    pub(super) order: Order,
    /// Columns of the nonzeros in this order, including padding.
    pub(super) columns: Columns,
    /// Deltas in the same order, including padding.
    pub(super) deltas: Deltas,
}

/// Order of the nonzeros.
pub(super) enum Order {
    /// By block, then column, then row: for sparse weights. By row, each addition to a sum would
    /// wait for the previous one, and each row would be visited for only a few nonzeros.
    Column {
        /// `[blocks + 1]`: the nonzeros of block `b` are `offsets[b]..offsets[b + 1]`.
        offsets: Vec<usize>,
        /// `[nonzeros]`: rows relative to the block's first row.
        rows: Vec<u16>,
    },
    /// By row, then column, with each row padded with zeros to a multiple of [`QUAD`]: for denser
    /// weights, whose sums stay in registers for a whole row.
    Row {
        /// `[blocks + 1]`: block `b` contains `rows[blocks[b]..blocks[b + 1]]`.
        blocks: Vec<usize>,
        /// Rows with nonzeros, relative to their block's first row.
        rows: Vec<u16>,
        /// `[rows + 1]`: index of each row's first nonzero.
        offsets: Vec<usize>,
    },
}

/// Nonzeros of a row per iteration.
pub(super) const QUAD: usize = 4;
/// Minimum mean number of nonzeros per row for row order.
const MIN_BY_ROW: usize = 24;
/// Maximum output rows per block if batch rows are computed as a vector: the sums of
/// [`super::MAX_ROWS`] batch rows then take 16 KiB, half of a small L1 cache.
const TRANSPOSED_BLOCK_ROWS: usize = 256;
/// Maximum output rows per block: row indices within a block are [`u16`]s.
const MAX_BLOCK_ROWS: usize = 1 << 16;
/// Blocks per weight with enough nonzeros, so that several cores can share it.
const BLOCKS: usize = 8;
/// Minimum nonzeros per block.
const BLOCK_NONZEROS: usize = 512;

/// Deltas of the parameters that are fused into a weight, each with the parameter's first row;
/// ascending.
type Parts<'a> = [(usize, &'a TensorDelta)];

impl OverlayLayout {
    /// Arranges a weight's deltas.
    ///
    /// # Panics
    /// If a delta is outside the weight, which is impossible for a bound ticket.
    pub fn new(weight: &WeightDeltas) -> Self {
        let ([out, inner], parts) = (weight.shape, &weight.parts[..]);
        let nonzeros = weight.nonzeros();
        let worth_transposing = nonzeros >= inner + 2 * out;
        let max = if worth_transposing {
            TRANSPOSED_BLOCK_ROWS
        } else {
            MAX_BLOCK_ROWS
        };
        let blocks = (nonzeros / BLOCK_NONZEROS).clamp(1, BLOCKS);
        let block_rows = out.div_ceil(blocks.max(out.div_ceil(max))).max(1);
        let arranged = if is_by_row(out, nonzeros) {
            by_row([out, inner], parts, block_rows)
        } else {
            by_column([out, inner], parts, block_rows)
        };
        let Arranged {
            order,
            columns,
            deltas,
        } = arranged;
        Self {
            out,
            inner,
            block_rows,
            nonzeros,
            worth_transposing,
            order,
            columns: if weight.has_wide_columns() {
                Columns::U32(columns)
            } else {
                Columns::U16(columns.into_iter().map(|column| column as u16).collect())
            },
            deltas: Deltas::from_f32(deltas, weight.widest()),
        }
    }

    /// Number of deltas.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        [self.out, self.inner]
    }

    pub(super) fn blocks(&self) -> usize {
        let (Order::Column { offsets, .. }
        | Order::Row {
            blocks: offsets, ..
        }) = &self.order;
        offsets.len() - 1
    }

    /// Size in bytes on the heap.
    pub fn bytes(&self) -> usize {
        let order = match &self.order {
            Order::Column { offsets, rows } => size_of_val(&offsets[..]) + size_of_val(&rows[..]),
            Order::Row {
                blocks,
                rows,
                offsets,
            } => size_of_val(&blocks[..]) + size_of_val(&rows[..]) + size_of_val(&offsets[..]),
        };
        let entry = self.columns.size() + self.deltas.dtype().size();
        order + self.deltas.len() * entry
    }

    /// Upper bound on [`Self::bytes`] of the layout that [`Self::new`] would return.
    pub fn bytes_for(weight: &WeightDeltas) -> usize {
        let ([out, _], nonzeros) = (weight.shape, weight.nonzeros());
        let column = if weight.has_wide_columns() {
            size_of::<u32>()
        } else {
            size_of::<u16>()
        };
        let entry = column + weight.widest().size();
        let blocks = (out.div_ceil(TRANSPOSED_BLOCK_ROWS).max(BLOCKS) + 1) * size_of::<usize>();
        if is_by_row(out, nonzeros) {
            let row = size_of::<u16>() + size_of::<usize>() + (QUAD - 1) * entry;
            blocks + size_of::<usize>() + out * row + nonzeros * entry
        } else {
            blocks + nonzeros * (size_of::<u16>() + entry)
        }
    }
}

fn count(parts: &Parts) -> usize {
    parts.iter().map(|(_, delta)| delta.nonzeros()).sum()
}

impl WeightDeltas<'_> {
    /// Number of deltas.
    pub fn nonzeros(&self) -> usize {
        count(&self.parts)
    }

    /// Whether columns are stored in u32.
    pub fn has_wide_columns(&self) -> bool {
        self.shape[1] > MAX_U16_COLUMNS
    }

    /// The narrowest dtype that holds all deltas exactly.
    pub fn widest(&self) -> DeltaDtype {
        let is_f32 = |(_, delta): &(usize, &TensorDelta)| delta.deltas().dtype() == DeltaDtype::F32;
        if self.parts.iter().any(is_f32) {
            DeltaDtype::F32
        } else {
            DeltaDtype::Bf16
        }
    }
}

fn is_by_row(out: usize, nonzeros: usize) -> bool {
    nonzeros >= out * MIN_BY_ROW
}

/// Entries `(row of the weight, column, delta)`, by row, then column.
fn entries<'a>(parts: &'a Parts) -> impl Iterator<Item = (usize, usize, f32)> + 'a {
    parts.iter().flat_map(|&(first, delta)| {
        let entries = delta.entries();
        entries.map(move |(row, column, delta)| (first + row, column, delta))
    })
}

struct Arranged {
    order: Order,
    columns: Vec<u32>,
    deltas: Vec<f32>,
}

fn by_column([out, inner]: [usize; 2], parts: &Parts, block_rows: usize) -> Arranged {
    let (nonzeros, blocks) = (count(parts), out.div_ceil(block_rows));
    // Index of the next nonzero of each block and column.
    let mut next = vec![0usize; blocks * inner + 1];
    for (row, column, _) in entries(parts) {
        assert!(row < out && column < inner, "a delta is outside its weight");
        next[row / block_rows * inner + column + 1] += 1;
    }
    for i in 1..next.len() {
        next[i] += next[i - 1];
    }
    let offsets = (0..=blocks).map(|block| next[block * inner]).collect();
    let mut rows = vec![0u16; nonzeros];
    let mut columns = vec![0u32; nonzeros];
    let mut deltas = vec![0f32; nonzeros];
    for (row, column, delta) in entries(parts) {
        let index = &mut next[row / block_rows * inner + column];
        // Lossless: a block has at most MAX_BLOCK_ROWS rows, and ticket columns fit u32.
        rows[*index] = (row % block_rows) as u16;
        columns[*index] = column as u32;
        deltas[*index] = delta;
        *index += 1;
    }
    Arranged {
        order: Order::Column { offsets, rows },
        columns,
        deltas,
    }
}

fn by_row([out, inner]: [usize; 2], parts: &Parts, block_rows: usize) -> Arranged {
    let room = count(parts) + out * (QUAD - 1);
    let (mut columns, mut deltas) = (Vec::with_capacity(room), Vec::with_capacity(room));
    let (mut blocks, mut rows, mut offsets) = (vec![0], Vec::new(), vec![0]);
    let mut last = None;
    for (row, column, delta) in entries(parts) {
        assert!(row < out && column < inner, "a delta is outside its weight");
        if last != Some(row) {
            pad(&mut columns, &mut deltas);
            if last.is_some() {
                offsets.push(deltas.len());
            }
            blocks.resize(row / block_rows + 1, rows.len());
            // Lossless: a block has at most MAX_BLOCK_ROWS rows.
            rows.push((row % block_rows) as u16);
            last = Some(row);
        }
        columns.push(column as u32);
        deltas.push(delta);
    }
    pad(&mut columns, &mut deltas);
    if last.is_some() {
        offsets.push(deltas.len());
    }
    blocks.resize(out.div_ceil(block_rows) + 1, rows.len());
    Arranged {
        order: Order::Row {
            blocks,
            rows,
            offsets,
        },
        columns,
        deltas,
    }
}

/// Pads with zeros to a multiple of [`QUAD`].
fn pad(columns: &mut Vec<u32>, deltas: &mut Vec<f32>) {
    let whole = deltas.len().next_multiple_of(QUAD);
    let column = columns.last().copied().unwrap_or(0);
    columns.resize(whole, column);
    deltas.resize(whole, 0.0);
}
