//! Why an evaluation ended.

use crate::engine::{SequenceError, SubmitError};

/// Why an evaluation ended without a result. Rows are named by their line in the data file, from 1.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("the data has no row to evaluate")]
    NoRows,
    #[error("line {line}: the row has {tokens} tokens, the context holds {limit}")]
    TooLong {
        line: usize,
        tokens: usize,
        limit: usize,
    },
    #[error("line {line}: token {token} is none of the base's, which has {vocab_size}")]
    UnknownToken {
        line: usize,
        token: u32,
        vocab_size: usize,
    },
    #[error("line {line}: {error}")]
    Submit { line: usize, error: SubmitError },
    #[error("line {line}: {error}")]
    Sequence { line: usize, error: SequenceError },
    #[error("line {line}: the engine stopped before the row was done")]
    Stopped { line: usize },
}
