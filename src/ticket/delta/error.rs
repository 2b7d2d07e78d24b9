//! Errors in the deltas of one parameter.

/// Error in the deltas of one parameter.
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
