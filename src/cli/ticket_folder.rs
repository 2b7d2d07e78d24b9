//! The ticket folder, and the lookup of a ticket by file or by name.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

/// The ticket folder.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Tickets")]
pub struct FolderArgs {
    /// Ticket folder: its file NAME.safetensors is the ticket NAME, and the server stores uploads
    /// in it.
    #[arg(
        long,
        value_name = "DIR",
        env = "TOMBOLA_TICKETS",
        default_value = "adapters"
    )]
    pub tickets: PathBuf,
}

impl FolderArgs {
    /// The file of a ticket, which is given as a file or as a name in this folder.
    ///
    /// # Errors
    /// Neither exists.
    pub fn find(&self, ticket: &str) -> anyhow::Result<PathBuf> {
        ticket_file(ticket, &self.tickets)
    }
}

/// The file of a ticket, which is given as a file or as a name in `folder`. Paths are not checked.
///
/// # Errors
/// A name has no file.
pub fn ticket_file(ticket: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let file = PathBuf::from(ticket);
    let is_name = file.file_name().is_some_and(|name| name == ticket);
    if file.is_file() || !is_name || file.extension().is_some_and(|e| e == "safetensors") {
        return Ok(file);
    }
    let named = folder.join(format!("{ticket}.safetensors"));
    if !named.is_file() {
        bail!(
            "there is no ticket `{ticket}`: neither a file of that name nor {} exists",
            named.display()
        );
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_files_or_names() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("sql.safetensors");
        std::fs::write(&inside, "").unwrap();
        let find = |ticket: &str| ticket_file(ticket, folder.path());
        assert_eq!(find("sql").unwrap(), inside);
        assert_eq!(find(inside.to_str().unwrap()).unwrap(), inside);
        // A missing path is an error of the later read.
        for path in ["some/sql", "sql.safetensors", "/nowhere/sql.safetensors"] {
            assert_eq!(find(path).unwrap(), Path::new(path));
        }
        let error = find("other").unwrap_err().to_string();
        assert!(
            error.contains("`other`") && error.contains("other.safetensors"),
            "{error}"
        );
    }
}
