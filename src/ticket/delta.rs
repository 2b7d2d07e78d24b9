//! The deltas of one parameter: a sparse matrix in compressed rows.

use std::fmt;

use half::bf16;

/// The most columns that [`Columns::U16`] can address: `in` above this takes [`Columns::U32`].
pub const MAX_U16_COLUMNS: usize = 1 << 16;

/// The deltas of one parameter of shape `[out, in]`, as compressed sparse rows (CSR).
///
/// Always well-formed: row offsets rise from 0 to the number of nonzeros, columns strictly
/// increase within a row, deltas are finite. A delta may be zero: the position is still the
/// ticket's.
#[derive(Clone, PartialEq)]
pub struct TensorDelta {
    row_offsets: Vec<u32>,
    columns: Columns,
    deltas: Deltas,
}

/// Column of each nonzero, `[nnz]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Columns {
    /// For parameters of at most [`MAX_U16_COLUMNS`] columns.
    U16(Vec<u16>),
    /// For wider parameters.
    U32(Vec<u32>),
}

/// What is added to the base's value at each nonzero, `[nnz]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Deltas {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

/// How deltas are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeltaDtype {
    /// 2 bytes a nonzero; f32 values are rounded to the nearest, ties to even.
    #[default]
    Bf16,
    /// 4 bytes a nonzero.
    F32,
}

/// What is wrong with the deltas of one parameter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeltaError {
    #[error("row_offsets has {0} entries, expected at least 2 (rows + 1)")]
    NoRows(usize),
    #[error("row_offsets starts at {0}, expected 0")]
    FirstOffset(u32),
    #[error("row_offsets falls from {from} to {to} at row {row}")]
    DecreasingOffset { row: usize, from: u32, to: u32 },
    #[error("row_offsets ends at {last}, but there are {columns} columns and {deltas} deltas")]
    Lengths {
        last: u32,
        columns: usize,
        deltas: usize,
    },
    #[error("column {column} follows {previous} in row {row}; columns must strictly increase")]
    ColumnOrder {
        row: usize,
        previous: u32,
        column: u32,
    },
    #[error("delta {index} is {value}, expected a finite number")]
    NotFinite { index: usize, value: f32 },
    #[error("[{rows}, {columns}] is not a shape that a ticket can address")]
    Shape { rows: usize, columns: usize },
    #[error("there are {indices} positions, but {deltas} deltas")]
    FlatLengths { indices: usize, deltas: usize },
    #[error("there are {0} positions; one parameter holds at most {max}", max = u32::MAX)]
    TooMany(usize),
    #[error("position {index} is outside a parameter of {weights} weights")]
    OutOfRange { index: i64, weights: usize },
    #[error("position {0} appears twice")]
    DuplicateIndex(usize),
    #[error("position {index} follows {previous}; positions must strictly increase")]
    IndexOrder { previous: usize, index: usize },
}

impl TensorDelta {
    /// Checks and takes CSR arrays: `row_offsets` `[out + 1]`, `columns` and `deltas` `[nnz]`.
    ///
    /// # Errors
    /// The first fault found; see [`DeltaError`].
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
    /// Positions that are out of range, out of order or double; deltas that are not finite.
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
        // Lossless: a column is below `columns`, which fits the width chosen.
        let column = |index: &usize| index % columns;
        let columns = if columns <= MAX_U16_COLUMNS {
            Columns::U16(indices.iter().map(|i| column(i) as u16).collect())
        } else {
            Columns::U32(indices.iter().map(|i| column(i) as u32).collect())
        };
        Self::new(row_offsets, columns, deltas)
    }

    /// The parameter's rows (`out`).
    pub fn rows(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// `[out + 1]`: the nonzeros of row `r` are `row_offsets[r]..row_offsets[r + 1]`.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// `[nnz]`: strictly increasing within a row.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// `[nnz]`: finite, in the order of the columns.
    pub fn deltas(&self) -> &Deltas {
        &self.deltas
    }

    /// Positions held, zero deltas included.
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

    /// The row and column of the rightmost nonzero, if there is any.
    pub(super) fn rightmost(&self) -> Option<(usize, u32)> {
        let rows = self.row_offsets.windows(2).enumerate();
        let filled = rows.filter(|(_, bounds)| bounds[0] < bounds[1]);
        // Columns rise within a row, so the last of a row is its largest.
        let last = filled.map(|(row, bounds)| (row, self.columns.get(bounds[1] as usize - 1)));
        last.max_by_key(|&(_, column)| column)
    }
}

// The arrays can be hundreds of megabytes: show their size.
impl fmt::Debug for TensorDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorDelta")
            .field("rows", &self.rows())
            .field("nonzeros", &self.nonzeros())
            .field("dtype", &self.deltas.dtype())
            .finish()
    }
}

impl Columns {
    /// The number of nonzeros.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(columns) => columns.len(),
            Self::U32(columns) => columns.len(),
        }
    }

    /// Whether there is no nonzero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one column index.
    pub fn size(&self) -> usize {
        match self {
            Self::U16(_) => size_of::<u16>(),
            Self::U32(_) => size_of::<u32>(),
        }
    }

    /// The column of nonzero `i`.
    ///
    /// # Panics
    /// `i` is not below [`Columns::len`].
    pub fn get(&self, i: usize) -> u32 {
        match self {
            Self::U16(columns) => columns[i].into(),
            Self::U32(columns) => columns[i],
        }
    }
}

impl DeltaDtype {
    /// Bytes of one delta.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => size_of::<bf16>(),
            Self::F32 => size_of::<f32>(),
        }
    }
}

impl Deltas {
    /// Stores f32 values as `dtype`.
    pub fn from_f32(values: Vec<f32>, dtype: DeltaDtype) -> Self {
        match dtype {
            DeltaDtype::Bf16 => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            DeltaDtype::F32 => Self::F32(values),
        }
    }

    /// The number of nonzeros.
    pub fn len(&self) -> usize {
        match self {
            Self::Bf16(deltas) => deltas.len(),
            Self::F32(deltas) => deltas.len(),
        }
    }

    /// Whether there is no nonzero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The delta of nonzero `i`, widened.
    ///
    /// # Panics
    /// `i` is not below [`Deltas::len`].
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::Bf16(deltas) => deltas[i].to_f32(),
            Self::F32(deltas) => deltas[i],
        }
    }

    /// How the deltas are stored.
    pub fn dtype(&self) -> DeltaDtype {
        match self {
            Self::Bf16(_) => DeltaDtype::Bf16,
            Self::F32(_) => DeltaDtype::F32,
        }
    }

    /// Whether every delta is zero, of either sign.
    pub(super) fn all_zero(&self) -> bool {
        match self {
            Self::Bf16(deltas) => deltas.iter().all(|d| *d == bf16::ZERO),
            Self::F32(deltas) => deltas.iter().all(|d| *d == 0.0),
        }
    }

    fn first_not_finite(&self) -> Option<(usize, f32)> {
        let index = match self {
            Self::Bf16(deltas) => deltas.iter().position(|d| !d.is_finite()),
            Self::F32(deltas) => deltas.iter().position(|d| !d.is_finite()),
        };
        index.map(|index| (index, self.get(index)))
    }
}

impl fmt::Display for DeltaDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
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

/// Columns strictly increase within each row; `row_offsets` has been checked.
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
