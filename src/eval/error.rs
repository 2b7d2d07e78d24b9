//! Errors of an evaluation.

use crate::engine::{SequenceError, SubmitError};

/// Error that ends an evaluation. Messages name rows by their line in the data file, from 1.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("the data has no row to evaluate")]
    NoRows,
    #[error("line {line}: the row has {tokens} tokens, the context holds at most {limit}")]
    TooLong {
        line: usize,
        tokens: usize,
        limit: usize,
    },
    #[error("line {line}: token {token} is outside the base's vocabulary of {vocab_size} tokens")]
    UnknownToken {
        line: usize,
        token: u32,
        vocab_size: usize,
    },
    #[error("line {line}: {error}")]
    Submit { line: usize, error: SubmitError },
    #[error("line {line}: {error}")]
    Sequence { line: usize, error: SequenceError },
    #[error("line {line}: the engine stopped before the row was finished")]
    Stopped { line: usize },
}
