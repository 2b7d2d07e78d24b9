//! `tombola man`: the man pages.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::Cli;

/// Arguments of `tombola man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder that the pages are written into, one per subcommand; created if missing.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola man ~/.local/share/man/man1
  man tombola-ticket-extract";

/// Writes the pages.
///
/// # Errors
/// The folder or a page cannot be written.
pub fn run(args: &ManArgs) -> anyhow::Result<()> {
    let folder = &args.folder;
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_subcommand_gets_a_page() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("man1");
        run(&ManArgs {
            folder: folder.clone(),
        })
        .unwrap();
        for name in [
            "tombola",
            "tombola-serve",
            "tombola-bench-costs",
            "tombola-ticket-merge",
        ] {
            let page = fs::read_to_string(folder.join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH"), "{name}: {page}");
        }
        for name in ["tombola-docs", "tombola-help", "tombola-bench-help"] {
            assert!(!folder.join(format!("{name}.1")).exists(), "{name}");
        }
    }
}
