//! Reading of a base's text files, bounded before they are read.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use super::error::ModelError;

/// Reads a regular file of at most `max_bytes` bytes as text.
///
/// # Errors
/// The file cannot be read, is not a regular file, is larger, or is not UTF-8.
pub(super) fn text(path: &Path, max_bytes: u64) -> Result<String, ModelError> {
    regular(path)?;
    let too_large = || ModelError::invalid(path, format!("has more than {max_bytes} bytes"));
    let file = File::open(path).map_err(ModelError::io(path))?;
    let mut text = String::new();
    // One byte more than allowed, to tell a file that is larger.
    let mut bounded = file.take(max_bytes.saturating_add(1));
    bounded
        .read_to_string(&mut text)
        .map_err(ModelError::io(path))?;
    if text.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(text)
}

/// Size of a regular file in bytes. Checked before opening: opening a pipe waits for a writer.
///
/// # Errors
/// The file cannot be read, or is not a regular file.
pub(super) fn regular(path: &Path) -> Result<u64, ModelError> {
    let info = fs::metadata(path).map_err(ModelError::io(path))?;
    if !info.is_file() {
        return Err(ModelError::invalid(path, "is not a regular file"));
    }
    Ok(info.len())
}
