//! Lines on standard error.

use std::fmt::Display;
use std::io::Write as _;

/// Prints a line on standard error. One that cannot be written, as on a full disk, is lost:
/// `eprintln!` would panic, and end a training run or swallow the key that was just made.
pub fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
