//! A ticket's deltas for one weight, arranged for the sparse product.

use super::WeightDeltas;
use crate::ticket::{Columns, DeltaDtype, Deltas, MAX_U16_COLUMNS, TensorDelta};

/// The deltas of one weight `[out, in]`, in blocks of output rows, arranged as their density wants
/// it.
pub struct OverlayLayout {
    pub(super) out: usize,
    pub(super) inner: usize,
    /// Output rows of a block, the last one may have fewer.
    pub(super) block_rows: usize,
    nonzeros: usize,
    /// Whether its nonzeros are worth that `x` and `y` are transposed for several batch rows.
    pub(super) by_vector: bool,
    pub(super) order: Order,
    /// Of the nonzeros in their order, and of what fills up.
    pub(super) columns: Columns,
    pub(super) deltas: Deltas,
}

/// In which order the nonzeros lie.
pub(super) enum Order {
    /// A block's together, by column, then row: for the sparse. In row order each sum would wait
    /// for its last addition, and every row would be visited for the few nonzeros that it has.
    Column {
        /// `[blocks + 1]`: the nonzeros of block `b` are `offsets[b]..offsets[b + 1]`.
        offsets: Vec<usize>,
        /// `[nnz]`: counted from the block's first row.
        rows: Vec<u16>,
    },
    /// By row, then column, each row filled up to whole [`QUAD`]s with zeros: for the denser, whose
    /// sums stay in registers from a row's first nonzero to its last.
    Row {
        /// `[blocks + 1]`: block `b` has the rows `rows[blocks[b]..blocks[b + 1]]`.
        blocks: Vec<usize>,
        /// The rows that have nonzeros, counted from their block's first.
        rows: Vec<u16>,
        /// `[rows + 1]`: where each row's nonzeros begin.
        offsets: Vec<usize>,
    },
}

/// Nonzeros of a row that are taken at once.
pub(super) const QUAD: usize = 4;
/// Nonzeros for each row of the weight from which on they lie by row.
const BY_ROW_FROM: usize = 24;
/// Output rows of a block at most where batch rows are taken as a vector: the sums of
/// [`super::MAX_ROWS`] take 16 KiB then, half of a small first-level cache.
const BLOCK_ROWS: usize = 256;
/// Output rows that a block's [`u16`]s can tell apart.
const MOST_ROWS: usize = 1 << 16;
/// Blocks that a weight is cut into where it has the nonzeros for them, so that several cores have
/// work.
const BLOCKS: usize = 8;
/// Nonzeros below which a block is not cut further.
const BLOCK_NONZEROS: usize = 512;

/// The parameters that a weight is fused of, each with the row that it begins at, ascending.
type Parts<'a> = [(usize, &'a TensorDelta)];

impl OverlayLayout {
    /// Arranges a weight's deltas.
    ///
    /// # Panics
    /// If a delta reaches beyond the weight, which a ticket that is bound to its base rules out.
    pub fn new(weight: &WeightDeltas) -> Self {
        let ([out, inner], parts) = (weight.shape, &weight.parts[..]);
        let nonzeros = weight.nonzeros();
        let by_vector = nonzeros >= inner + 2 * out;
        let most = if by_vector { BLOCK_ROWS } else { MOST_ROWS };
        let blocks = (nonzeros / BLOCK_NONZEROS).clamp(1, BLOCKS);
        let block_rows = out.div_ceil(blocks.max(out.div_ceil(most))).max(1);
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
            by_vector,
            order,
            columns: if weight.has_wide_columns() {
                Columns::U32(columns)
            } else {
                Columns::U16(columns.into_iter().map(|column| column as u16).collect())
            },
            deltas: Deltas::from_f32(deltas, weight.widest()),
        }
    }

    /// Nonzeros of all parts.
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

    /// Heap bytes.
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

    /// Heap bytes of what [`Self::new`] makes of the same, at most.
    pub fn bytes_for(weight: &WeightDeltas) -> usize {
        let ([out, _], nonzeros) = (weight.shape, weight.nonzeros());
        let column = if weight.has_wide_columns() {
            size_of::<u32>()
        } else {
            size_of::<u16>()
        };
        let entry = column + weight.widest().size();
        let blocks = (out.div_ceil(BLOCK_ROWS).max(BLOCKS) + 1) * size_of::<usize>();
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
    /// Nonzeros of all parts.
    pub fn nonzeros(&self) -> usize {
        count(&self.parts)
    }

    /// Whether columns are kept in u32.
    pub fn has_wide_columns(&self) -> bool {
        self.shape[1] > MAX_U16_COLUMNS
    }

    /// A dtype that holds all of the deltas.
    pub fn widest(&self) -> DeltaDtype {
        let wide = |(_, delta): &(usize, &TensorDelta)| delta.deltas().dtype() == DeltaDtype::F32;
        if self.parts.iter().any(wide) {
            DeltaDtype::F32
        } else {
            DeltaDtype::Bf16
        }
    }
}

fn is_by_row(out: usize, nonzeros: usize) -> bool {
    nonzeros >= out * BY_ROW_FROM
}

/// `(row of the weight, column, delta)`, by row, then column.
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
    // Where the nonzeros of each block and column go.
    let mut places = vec![0usize; blocks * inner + 1];
    for (row, column, _) in entries(parts) {
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
    for (row, column, delta) in entries(parts) {
        let place = &mut places[row / block_rows * inner + column];
        // Lossless: a block has at most MOST_ROWS rows, and tickets keep columns in u32 at most.
        rows[*place] = (row % block_rows) as u16;
        columns[*place] = column as u32;
        deltas[*place] = delta;
        *place += 1;
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
        assert!(row < out && column < inner, "a delta beyond its weight");
        if last != Some(row) {
            fill_up(&mut columns, &mut deltas);
            if last.is_some() {
                offsets.push(deltas.len());
            }
            blocks.resize(row / block_rows + 1, rows.len());
            // Lossless: a block has at most MOST_ROWS rows.
            rows.push((row % block_rows) as u16);
            last = Some(row);
        }
        columns.push(column as u32);
        deltas.push(delta);
    }
    fill_up(&mut columns, &mut deltas);
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

/// Zeros up to a whole [`QUAD`].
fn fill_up(columns: &mut Vec<u32>, deltas: &mut Vec<f32>) {
    let whole = deltas.len().next_multiple_of(QUAD);
    let column = columns.last().copied().unwrap_or(0);
    columns.resize(whole, column);
    deltas.resize(whole, 0.0);
}
