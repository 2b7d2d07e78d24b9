//! Training and evaluation data: rows of a JSON Lines file, encoded as the server encodes requests.
//!
//! | row | learned tokens |
//! |---|---|
//! | `{"messages": [{"role", "content"}, …]}` | every assistant message |
//! | `{"prompt": "…", "completion": "…"}` | the completion |
//! | `{"prompt": […], "completion": […]}`, both messages | the completion's assistant messages |
//! | `{"text": "…"}` | the whole text |
//!
//! Other fields are ignored, and `null` counts as absent. A file is read completely or not at all:
//! the first malformed row is an error. This layer depends on neither candle nor HTTP.

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

/// One encoded row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Line in the file, from 1.
    pub line: usize,
    /// Token ids of the row, cut to [`DataOptions::max_length`]. Ends with the last learned token,
    /// since tokens after it do not affect the loss.
    pub tokens: Vec<u32>,
    /// Positions of the learned tokens: ascending, disjoint, non-empty ranges without position 0.
    pub learned: Vec<Range<usize>>,
    /// Text of the last learned answer, complete even if its tokens were cut. `None` for a plain
    /// text, which has no prompt.
    pub answer: Option<String>,
}

impl Example {
    /// The tokens before the last answer, as a request would send them. `None` for a plain text.
    pub fn prompt(&self) -> Option<&[u32]> {
        let last = self.learned.last().filter(|_| self.answer.is_some())?;
        self.tokens.get(..last.start)
    }

    /// Number of learned tokens.
    pub fn learned_tokens(&self) -> usize {
        self.learned.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The encoded rows of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// At least one row, in the order of the file.
    pub examples: Vec<Example>,
    /// SHA-256 of the whole file, including rows beyond [`DataOptions::limit`].
    pub digest: Digest,
    /// Number of rows cut to [`DataOptions::max_length`].
    pub cut: usize,
    /// Number of these rows that were dropped because the cut left no learned token.
    pub left_out: usize,
}

/// Options for reading rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Maximum tokens per row; the rest is cut off.
    pub max_length: usize,
    /// Number of rows to read; later rows are not checked. `None` reads all.
    pub limit: Option<usize>,
    /// Token that ends a text or a turn; it is appended to completions and plain texts.
    pub end_token: u32,
}

/// Reads a file with one JSON object per line. Blank lines are skipped.
///
/// # Errors
/// The file cannot be read, a row is malformed or cannot be rendered, or no row has a learned
/// token.
pub fn read(path: &Path, text: &Text, options: &DataOptions) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Read {
        path: path.to_owned(),
        error,
    })?;
    parse(path, &bytes, text, options)
}

/// Encodes the bytes of a file; `path` names it in messages.
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
    // In the order of the file, so that the error names the first malformed row.
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

/// The non-blank lines, with their numbers from 1.
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
