//! Errors of finding, loading and running a base.

use std::path::{Path, PathBuf};

use crate::ticket::Digest;

/// The reason why a base could not be found, loaded or run. Each message is one line; those about a
/// file name it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "there is no model {0:?}: expected a folder, a .gguf file, a hub id (owner/name) or the \
         built-in \"smollm2-135m\""
    )]
    UnknownModel(String),
    #[error("{path}: {error}", path = path.display())]
    Io {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path} is missing: a base folder needs {expected}", path = path.display())]
    Missing {
        path: PathBuf,
        expected: &'static str,
    },
    #[error("{path}: {reason}", path = path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("{path}: parameter {name} is missing", path = path.display())]
    MissingParameter { path: PathBuf, name: String },
    #[error(
        "{path}: parameter {name} has shape {found:?}, the configuration expects {expected:?}",
        path = path.display()
    )]
    ParameterShape {
        path: PathBuf,
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error(
        "a context length of {requested} tokens exceeds the {trained} tokens that the model was \
         trained for"
    )]
    ContextLength { requested: usize, trained: usize },
    #[error(
        "a context length of {requested} tokens needs {bytes} bytes of rotation tables, more than \
         there is memory for"
    )]
    RotationTables { requested: usize, bytes: usize },
    #[error("device {device}: {reason}")]
    Device { device: String, reason: String },
    #[error(
        "the GPU has no kernel for {group} query heads of {dim} values per key head: expected at \
         most 8 heads per key head, and at most 256 values per head (an even number, a multiple of \
         4 from 64 on, of 8 from 128 on)"
    )]
    Heads { dim: usize, group: usize },
    #[error("a base can be kept quantised on the CPU only")]
    QuantizedOnGpu,
    #[error("there is not enough memory for {bytes} bytes of keys and values")]
    NoMemory { bytes: usize },
    #[error("cannot fetch {what}: {reason}")]
    Fetch { what: String, reason: String },
    #[error("cannot fetch the default base ({what}): {reason}")]
    FetchDefaultBase { what: String, reason: String },
    #[error(
        "the ticket is bound to the base with fingerprint {ticket}, the resident base has {base}"
    )]
    ForeignTicket { ticket: Digest, base: Digest },
    #[error("parameter {0}, which the ticket adapts, is not resident")]
    UnknownParameter(String),
    #[error("{path} cannot be kept quantised: {reason}", path = path.display())]
    KeepQuantized { path: PathBuf, reason: String },
    #[error(
        "{0} cannot be changed in place: the base is kept quantised, so tickets can only be \
         overlaid"
    )]
    Quantized(String),
    #[error("a swap failed, and the weights may be half written: {0}")]
    HalfWritten(Box<ModelError>),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the device or the host had too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::NoMemory { .. } => true,
            // The driver's error is text by the time it gets here.
            Self::Compute(error) => {
                let message = error.to_string().to_ascii_lowercase();
                message.contains("out of memory") || message.contains("out_of_memory")
            }
            _ => false,
        }
    }

    /// An adapter for `map_err`: an I/O error at `path`.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            error,
        }
    }

    /// A file or folder with invalid contents.
    pub(super) fn invalid(path: &Path, reason: impl ToString) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The first line of an error message: candle appends a backtrace if `RUST_BACKTRACE` is set.
pub(super) fn first_line(error: &impl ToString) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
