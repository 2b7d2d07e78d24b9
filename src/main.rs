//! The `tombola` binary: runs the command line, and prints an error in one line.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tombola::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombola: {error:#}");
            ExitCode::FAILURE
        }
    }
}
