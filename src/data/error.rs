use std::path::PathBuf;

use crate::text::TextError;

/// Why a file of rows cannot be used. Each message is one line that names the file.
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
        /// From 1.
        line: usize,
        problem: RowError,
    },
    #[error("{path} holds no row: expected one JSON object a line", path = .0.display())]
    NoRows(PathBuf),
    #[error(
        "{path} holds nothing to learn within the first {max_length} tokens of any row: raise the \
         maximum length",
        path = path.display()
    )]
    NothingLeft { path: PathBuf, max_length: usize },
}

/// What is wrong with one row.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("not UTF-8 at byte {0} of the line")]
    NotUtf8(usize),
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("a row is a JSON object, this is {0}")]
    NotAnObject(&'static str),
    #[error("none of `messages`, `prompt` with `completion`, and `text` is there")]
    NoForm,
    #[error("both `{0}` and `{1}` are there: a row has one form only")]
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
    #[error("`{0}` holds no message of the assistant: there is nothing to learn")]
    NoAnswer(&'static str),
    /// Messages are counted from 1, a prompt's before its completion's.
    #[error("message {0} is the assistant's, but nothing before it makes a prompt")]
    NoPrompt(usize),
    #[error("the chat template makes nothing of message {0}, an answer")]
    NothingRendered(usize),
    #[error(
        "the chat template does not render turn by turn: what it makes of the messages before \
         message {0} is not how the conversation begins, so what is learned could not be served"
    )]
    NotTurnByTurn(usize),
    #[error(transparent)]
    Text(#[from] TextError),
}
