//! The `tombola` binary: runs the command line, and prints an error in one line.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match tombola::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The status tells it even if the line cannot be written; `eprintln!` would panic.
            let _ = writeln!(std::io::stderr(), "tombola: {error:#}");
            ExitCode::FAILURE
        }
    }
}
