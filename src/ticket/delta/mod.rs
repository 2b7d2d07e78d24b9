//! Deltas of one parameter: a sparse matrix in compressed sparse rows (CSR).

mod arrays;
mod error;

use std::fmt;

pub use self::arrays::{Columns, DeltaDtype, Deltas};
pub use self::error::DeltaError;

/// Number of columns that [`Columns::U16`] can address; wider parameters use [`Columns::U32`].
pub const MAX_U16_COLUMNS: usize = 1 << 16;

/// The deltas of one parameter of shape `[out, in]`, as compressed sparse rows (CSR).
///
/// Always well-formed: row offsets rise from 0 to the number of nonzeros, columns strictly
/// increase within a row, deltas are finite. A zero delta still occupies its position.
#[derive(Clone, PartialEq)]
pub struct TensorDelta {
    row_offsets: Vec<u32>,
    columns: Columns,
    deltas: Deltas,
}

impl TensorDelta {
    /// Validates CSR arrays: `row_offsets` `[out + 1]`, `columns` and `deltas` `[nnz]`.
    ///
    /// # Errors
    /// The first error found; see [`DeltaError`].
    pub fn new(
        row_offsets: Vec<u32>,
        columns: Columns,
        deltas: Deltas,
    ) -> Result<Self, DeltaError> {
        check_offsets(&row_offsets, columns.len(), deltas.len())?;
        match &columns {
            Columns::U16(columns) => check_columns(&row_offsets, columns)?,
            Columns::U32(columns) => check_columns(&row_offsets, columns)?,
        }
        if let Some((index, value)) = deltas.first_not_finite() {
            return Err(DeltaError::NotFinite { index, value });
        }
        Ok(Self {
            row_offsets,
            columns,
            deltas,
        })
    }

    /// Builds the CSR arrays of a parameter of shape `[out, in]` from strictly increasing
    /// row-major positions (`row * in + column`) and their deltas.
    ///
    /// # Errors
    /// Positions are out of range, out of order or repeated, or a delta is not finite.
    pub fn from_flat(
        [rows, columns]: [usize; 2],
        indices: &[usize],
        deltas: Deltas,
    ) -> Result<Self, DeltaError> {
        let shape_error = DeltaError::Shape { rows, columns };
        let addressable = rows > 0 && columns > 0 && u32::try_from(columns).is_ok();
        let Some(weights) = rows.checked_mul(columns).filter(|_| addressable) else {
            return Err(shape_error);
        };
        if u32::try_from(indices.len()).is_err() {
            return Err(DeltaError::TooMany(indices.len()));
        }
        if indices.len() != deltas.len() {
            let (indices, deltas) = (indices.len(), deltas.len());
            return Err(DeltaError::FlatLengths { indices, deltas });
        }
        check_indices(indices, weights)?;
        let mut row_offsets = vec![0u32; rows + 1];
        for index in indices {
            row_offsets[index / columns + 1] += 1;
        }
        for row in 0..rows {
            row_offsets[row + 1] += row_offsets[row];
        }
        // Lossless: every column is below `columns`, which fits the chosen width.
        let column = |index: &usize| index % columns;
        let columns = if columns <= MAX_U16_COLUMNS {
            Columns::U16(indices.iter().map(|i| column(i) as u16).collect())
        } else {
            Columns::U32(indices.iter().map(|i| column(i) as u32).collect())
        };
        Self::new(row_offsets, columns, deltas)
    }

    /// Number of rows of the parameter (`out`).
    pub fn rows(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// Row offsets, `[out + 1]`: the nonzeros of row `r` are `row_offsets[r]..row_offsets[r + 1]`.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// Columns, `[nnz]`, strictly increasing within a row.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Deltas, `[nnz]`, finite, in the order of the columns.
    pub fn deltas(&self) -> &Deltas {
        &self.deltas
    }

    /// Number of positions, including those whose delta is zero.
    pub fn nonzeros(&self) -> usize {
        self.columns.len()
    }

    /// Heap bytes of the arrays.
    pub fn resident_bytes(&self) -> usize {
        let nonzero = self.columns.size() + self.deltas.dtype().size();
        size_of_val(&self.row_offsets[..]) + self.nonzeros() * nonzero
    }

    /// Every nonzero as `(row, column, delta)`, in row-major order.
    pub fn entries(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let rows = self.row_offsets.windows(2).enumerate();
        rows.flat_map(move |(row, bounds)| {
            let nonzeros = bounds[0] as usize..bounds[1] as usize;
            nonzeros.map(move |i| (row, self.columns.get(i) as usize, self.deltas.get(i)))
        })
    }

    /// Row and column of the rightmost nonzero, or `None` if there are no nonzeros.
    pub(super) fn rightmost(&self) -> Option<(usize, u32)> {
        let rows = self.row_offsets.windows(2).enumerate();
        let filled = rows.filter(|(_, bounds)| bounds[0] < bounds[1]);
        // Columns increase within a row, so the last one is the largest.
        let last = filled.map(|(row, bounds)| (row, self.columns.get(bounds[1] as usize - 1)));
        last.max_by_key(|&(_, column)| column)
    }
}

// The arrays can be hundreds of megabytes, so print only their size.
impl fmt::Debug for TensorDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorDelta")
            .field("rows", &self.rows())
            .field("nonzeros", &self.nonzeros())
            .field("dtype", &self.deltas.dtype())
            .finish()
    }
}

fn check_offsets(row_offsets: &[u32], columns: usize, deltas: usize) -> Result<(), DeltaError> {
    let &[first, .., last] = row_offsets else {
        return Err(DeltaError::NoRows(row_offsets.len()));
    };
    if first != 0 {
        return Err(DeltaError::FirstOffset(first));
    }
    if let Some(row) = row_offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        let (from, to) = (row_offsets[row], row_offsets[row + 1]);
        return Err(DeltaError::DecreasingOffset { row, from, to });
    }
    if [columns, deltas] != [last as usize; 2] {
        return Err(DeltaError::Lengths {
            last,
            columns,
            deltas,
        });
    }
    Ok(())
}

/// Checks that columns strictly increase within each row. `row_offsets` must be checked already.
fn check_columns<C: Copy + Into<u32>>(
    row_offsets: &[u32],
    columns: &[C],
) -> Result<(), DeltaError> {
    for (row, bounds) in row_offsets.windows(2).enumerate() {
        for pair in columns[bounds[0] as usize..bounds[1] as usize].windows(2) {
            let (previous, column) = (pair[0].into(), pair[1].into());
            if previous >= column {
                return Err(DeltaError::ColumnOrder {
                    row,
                    previous,
                    column,
                });
            }
        }
    }
    Ok(())
}

fn check_indices(indices: &[usize], weights: usize) -> Result<(), DeltaError> {
    for pair in indices.windows(2) {
        let (previous, index) = (pair[0], pair[1]);
        if previous == index {
            return Err(DeltaError::DuplicateIndex(index));
        }
        if previous > index {
            return Err(DeltaError::IndexOrder { previous, index });
        }
    }
    match indices.last() {
        Some(&last) if last >= weights => {
            let index = last as i64;
            Err(DeltaError::OutOfRange { index, weights })
        }
        _ => Ok(()),
    }
}
