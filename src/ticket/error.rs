//! Errors of reading, checking and writing tickets.

use std::io;
use std::path::PathBuf;

use super::{DeltaError, Digest, MAX_HEADER_BYTES};

/// The reason for refusing a ticket, or a flat file to import. Names taken from a file are escaped
/// and truncated, so that every message is one short line.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// `"read"` or `"write"`.
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("the file is larger than the limit of {limit} bytes")]
    FileTooLarge { limit: u64 },

    // The safetensors container.
    #[error("the file has {bytes} bytes: too short for a safetensors file, which starts with 8")]
    TooShort { bytes: usize },
    #[error("this is {0}; a ticket is a safetensors file")]
    ForeignFile(&'static str),
    #[error("the header claims {bytes} bytes; at most {MAX_HEADER_BYTES} are read")]
    HeaderTooLarge { bytes: u64 },
    #[error("the header claims {bytes} bytes, but only {available} follow: the file is cut short")]
    HeaderCutShort { bytes: u64, available: usize },
    #[error("the header is not a safetensors header: {0}")]
    HeaderJson(String),
    #[error("the key `{key}` appears twice in {place}")]
    DuplicateKey { place: &'static str, key: String },
    #[error(
        "tensor `{tensor}` lies at {start}..{end}, but the data so far ends at {expected}: \
         tensors must follow each other without gap or overlap"
    )]
    Offsets {
        tensor: String,
        start: u64,
        end: u64,
        expected: u64,
    },
    #[error("the header describes {expected} bytes of data, but {found} follow: cut short")]
    DataCutShort { expected: u64, found: u64 },
    #[error("{0} bytes follow the last tensor")]
    TrailingBytes(u64),
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    Dtype {
        tensor: String,
        found: String,
        expected: String,
    },
    #[error("tensor `{tensor}` has {dimensions} dimensions, expected 1")]
    Dimensions { tensor: String, dimensions: usize },
    #[error("tensor `{tensor}` has shape [{length}] of {dtype}, but {bytes} bytes")]
    ByteLength {
        tensor: String,
        length: u64,
        dtype: &'static str,
        bytes: usize,
    },

    // The ticket in the container.
    #[error("not a ticket: metadata `format` is {found}, expected `lota-ticket`")]
    NotATicket { found: String },
    #[error("this is a flat delta file, not a ticket; convert it with `tombola ticket import`")]
    FlatFile,
    #[error("ticket version `{0}` is not supported; this build reads version `1`")]
    Version(String),
    #[error("metadata `{0}` is missing")]
    MissingMetadata(&'static str),
    #[error("metadata `{0}` is not defined in ticket version `1`")]
    UnknownMetadata(String),
    #[error("metadata `{key}` {reason}")]
    MetadataValue { key: &'static str, reason: String },
    #[error("tensor `{tensor}` does not belong here; expected names that end in {expected}")]
    UnknownTensor { tensor: String, expected: String },
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    #[error("parameter `{parameter}`: {fault}")]
    Delta {
        parameter: String,
        fault: DeltaError,
    },
    #[error("the ticket changes no weight: {0}")]
    ChangesNothing(&'static str),
    #[error("{0:?} is not a ticket name: expected [A-Za-z0-9][A-Za-z0-9._-]{{0,63}}")]
    Name(String),

    // The ticket against a base.
    #[error(
        "the ticket is for another base: it was made for `{ticket_base}` \
         (fingerprint {ticket_fingerprint}), this is `{base}` (fingerprint {base_fingerprint})"
    )]
    ForeignBase {
        ticket_base: String,
        ticket_fingerprint: Digest,
        base: String,
        base_fingerprint: Digest,
    },
    #[error("parameter `{parameter}` does not exist in the base `{base}`")]
    UnknownParameter { parameter: String, base: String },
    #[error(
        "parameter `{0}` cannot be adapted: tickets adapt attention and MLP projection weights"
    )]
    NotAdaptable(String),
    #[error("parameter `{parameter}` has {found} rows, the base's has {expected}")]
    Rows {
        parameter: String,
        found: usize,
        expected: usize,
    },
    #[error(
        "parameter `{parameter}`: column {column} in row {row} is outside the base's {columns} \
         columns"
    )]
    ColumnOutOfRange {
        parameter: String,
        row: usize,
        column: u32,
        columns: usize,
    },
    #[error(
        "parameter `{parameter}`: columns are {found}, expected {expected} for {columns} columns"
    )]
    ColumnWidth {
        parameter: String,
        found: &'static str,
        expected: &'static str,
        columns: usize,
    },

    // The flat layout.
    #[error("`{0}` is the base's own name")]
    ReservedName(String),
    #[error("not a flat delta file: metadata `shape_of` {0}")]
    ShapeOf(String),
    #[error("parameter `{parameter}` has shape {found:?} in the file, {expected:?} in the base")]
    Shape {
        parameter: String,
        found: [usize; 2],
        expected: [usize; 2],
    },
}

/// Text from a file made safe for a message: escaped, and truncated to 120 characters.
pub(super) fn brief(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut brief = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '"' | '\'' => brief.push(c),
            _ => brief.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        brief.push('…');
    }
    brief
}
