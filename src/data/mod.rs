//! Rows to learn from and to be measured on, read from a file of JSON lines and encoded as a server
//! would encode them.
//!
//! | a row | what is learned |
//! |---|---|
//! | `{"messages": [{"role", "content"}, …]}` | every message of the assistant |
//! | `{"prompt": "…", "completion": "…"}` | the completion |
//! | `{"prompt": […], "completion": […]}`, both messages | the assistant's messages of the completion |
//! | `{"text": "…"}` | all of it |
//!
//! Fields besides these are passed over, and `null` is as good as absent. A file is taken whole or
//! not at all: the first malformed row refuses it. Knows no tensor and no HTTP.

mod encode;
mod error;
mod row;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::text::Text;
use crate::ticket::Digest;
use encode::Encoder;
pub use error::{DataError, RowError};
use row::Row;

/// One row, encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Line in the file, from 1.
    pub line: usize,
    /// Token ids of the whole row, cut to [`DataOptions::max_length`]. Ends with the last learned
    /// token: what a template writes behind it teaches nothing.
    pub tokens: Vec<u32>,
    /// Positions of the tokens that are learned: ascending, disjoint, non-empty ranges, none of
    /// which holds 0.
    pub learned: Vec<Range<usize>>,
    /// The text of the last answer that is learned, whole even where its tokens were cut. `None`
    /// for a plain text, which has no prompt.
    pub answer: Option<String>,
}

impl Example {
    /// The tokens before the last answer: what a server would be asked with. `None` for a plain
    /// text.
    pub fn prompt(&self) -> Option<&[u32]> {
        let last = self.learned.last().filter(|_| self.answer.is_some())?;
        self.tokens.get(..last.start)
    }

    /// How many tokens are learned.
    pub fn learned_tokens(&self) -> usize {
        self.learned.iter().map(ExactSizeIterator::len).sum()
    }
}

/// What [`read`] made of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// At least one, in the file's order.
    pub examples: Vec<Example>,
    /// SHA-256 of the file, of which [`DataOptions::limit`] may have left out rows.
    pub digest: Digest,
    /// Rows longer than [`DataOptions::max_length`]: their ends were cut off.
    pub cut: usize,
    /// Of those, rows left out because nothing to learn was left.
    pub left_out: usize,
}

/// How rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Tokens that a row may have; what is beyond is cut off.
    pub max_length: usize,
    /// The first rows only; the others are not even checked.
    pub limit: Option<usize>,
    /// The token that ends a text or a turn: appended to completions and plain texts.
    pub end_token: u32,
}

/// Reads a file of one JSON object a line. Blank lines are skipped.
///
/// # Errors
/// The file cannot be read, a row is malformed or cannot be rendered, or no row is left.
pub fn read(path: &Path, text: &Text, options: &DataOptions) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Read {
        path: path.to_owned(),
        error,
    })?;
    parse(path, &bytes, text, options)
}

/// Reads the bytes of a file; `path` is its name for messages.
fn parse(
    path: &Path,
    bytes: &[u8],
    text: &Text,
    options: &DataOptions,
) -> Result<Dataset, DataError> {
    let encoder = Encoder::new(text, options);
    let rows = rows(bytes, options.limit);
    if rows.is_empty() {
        return Err(DataError::NoRows(path.to_owned()));
    }
    let encoded: Vec<_> = rows
        .par_iter()
        .map(|&(line, row)| encoder.example(line, &Row::parse(row)?))
        .collect();
    let mut examples = Vec::with_capacity(rows.len());
    let mut cut = 0;
    // In the file's order, so that of several malformed rows the first is told.
    for (&(line, _), encoded) in rows.iter().zip(encoded) {
        let (example, was_cut) = encoded.map_err(|problem| DataError::Row {
            path: path.to_owned(),
            line,
            problem,
        })?;
        cut += usize::from(was_cut);
        examples.extend(Some(example).filter(|example| !example.learned.is_empty()));
    }
    if examples.is_empty() {
        return Err(DataError::NothingLeft {
            path: path.to_owned(),
            max_length: options.max_length,
        });
    }
    Ok(Dataset {
        digest: Digest::of(bytes),
        left_out: rows.len() - examples.len(),
        cut,
        examples,
    })
}

/// The lines that are not blank, with their numbers from 1.
fn rows(bytes: &[u8], limit: Option<usize>) -> Vec<(usize, &[u8])> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let lines = bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    (1..)
        .zip(lines)
        .filter(|(_, line)| !line.is_empty())
        .take(limit.unwrap_or(usize::MAX))
        .collect()
}
