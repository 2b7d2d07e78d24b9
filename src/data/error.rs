//! Errors of reading data.

use std::path::PathBuf;

use crate::text::TextError;

/// Error of a data file. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path}, line {line}: {problem}", path = path.display())]
    Row {
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        problem: RowError,
    },
    #[error("{path} holds no row: expected one JSON object per line", path = .0.display())]
    NoRows(PathBuf),
    #[error(
        "{path} holds nothing to learn within the first {max_length} tokens of any row: raise the \
         maximum length",
        path = path.display()
    )]
    NothingLeft { path: PathBuf, max_length: usize },
}

/// Error of one row.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("not UTF-8 at byte {0} of the line")]
    NotUtf8(usize),
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("expected a JSON object, found {0}")]
    NotAnObject(&'static str),
    #[error("expected `messages`, `prompt` with `completion`, or `text`, found none of them")]
    NoForm,
    #[error("found both `{0}` and `{1}`: a row has only one of them")]
    SeveralForms(&'static str, &'static str),
    #[error("`{0}` is missing")]
    Missing(String),
    #[error("`{field}` is {found}, expected {expected}")]
    Type {
        field: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("`{0}` is empty")]
    Empty(String),
    #[error("`{0}` holds no assistant message: there is nothing to learn")]
    NoAnswer(&'static str),
    /// Messages are counted from 1; those of the prompt come before those of the completion.
    #[error("message {0} is from the assistant, but nothing before it renders to a prompt")]
    NoPrompt(usize),
    #[error("the chat template renders nothing for message {0}, an answer")]
    NothingRendered(usize),
    #[error(
        "the chat template does not render turn by turn: the messages before message {0} do not \
         render to the beginning of the conversation, so the learned prompt could not be served"
    )]
    NotTurnByTurn(usize),
    #[error(transparent)]
    Text(#[from] TextError),
}
