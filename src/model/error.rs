use std::path::{Path, PathBuf};

use super::device::DeviceSpec;
use crate::ticket::Digest;

/// Why a base could not be found, loaded or run. Each message is one line that names the file.
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
        "{path}: parameter {name} has shape {found:?}, the configuration wants {expected:?}",
        path = path.display()
    )]
    ParameterShape {
        path: PathBuf,
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error(
        "a length of {asked} tokens is beyond the {trained} tokens that the model was trained for"
    )]
    ContextLength { asked: usize, trained: usize },
    #[error("device {asked}: {reason}")]
    Device { asked: DeviceSpec, reason: String },
    #[error(
        "the GPU has no kernel for heads of {dim}, {group} to a key head: at most 256 wide (even, from 64 on a multiple \
         of 4, from 128 on of 8) and 8 to a key head"
    )]
    Heads { dim: usize, group: usize },
    #[error("a base is kept quantised on the CPU only")]
    QuantizedOnGpu,
    #[error("there is no memory for {bytes} bytes of keys and values")]
    NoMemory { bytes: usize },
    #[error("fetching {what}: {reason}")]
    Fetch { what: String, reason: String },
    #[error("the ticket is bound to a base of fingerprint {ticket}, the resident one has {base}")]
    ForeignTicket { ticket: Digest, base: Digest },
    #[error("the parameter {0} that the ticket adapts is not resident")]
    UnknownParameter(String),
    #[error("{path} cannot be kept quantised: {reason}", path = path.display())]
    KeepQuantized { path: PathBuf, reason: String },
    #[error(
        "{0} cannot be written into: the base is kept quantised, and takes tickets overlaid only"
    )]
    Quantized(String),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            error,
        }
    }

    pub(super) fn invalid(path: &Path, reason: impl ToString) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The first line of an error: candle adds a backtrace where one is asked for.
pub(super) fn first_line(error: &impl ToString) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
