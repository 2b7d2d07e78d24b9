//! The ticket folder on disk: `<alias>.safetensors` files, and temporary files of uploads.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;

const EXTENSION: &str = "safetensors";
/// Uploads in progress are named `.upload-*.tmp`; a killed process leaves them behind.
const STAGED_PREFIX: &str = ".upload-";
const STAGED_SUFFIX: &str = ".tmp";

/// The folder that holds the tickets.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Opens the folder, creates it if it is missing, and removes the files of killed uploads.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let staged = name.starts_with(STAGED_PREFIX) && name.ends_with(STAGED_SUFFIX);
            if staged && let Err(error) = fs::remove_file(entry.path()) {
                let file = entry.path();
                tracing::warn!(file = %file.display(), %error, "cannot remove a left-over upload");
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// Every ticket file, by name.
    pub fn ticket_files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.0)?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|e| e == EXTENSION));
        paths.sort();
        Ok(paths)
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of an alias's ticket file.
    pub fn path_of(&self, alias: &str) -> PathBuf {
        self.0.join(format!("{alias}.{EXTENSION}"))
    }

    /// Creates a temporary file in the folder, removed when dropped.
    pub fn stage(&self) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(STAGED_PREFIX).suffix(STAGED_SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(fs::Permissions::from_mode(0o644));
        }
        builder.tempfile_in(&self.0)
    }

    /// Renames a staged and synced file to `path`. Without `replace`, an existing file is an
    /// [`io::ErrorKind::AlreadyExists`] error.
    pub fn place(&self, staged: NamedTempFile, path: &Path, replace: bool) -> io::Result<()> {
        let placed = if replace {
            staged.persist(path)
        } else {
            staged.persist_noclobber(path)
        };
        placed.map_err(|refused| refused.error)?;
        self.sync();
        Ok(())
    }

    /// Removes a ticket's file; a missing file is no error.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.sync();
                Ok(())
            }
        }
    }

    /// Syncs the folder, so that renames and removals survive a power cut. They are
    /// visible already, so a failure is logged, not returned.
    fn sync(&self) {
        // Only Unix can open a folder as a file.
        if cfg!(unix)
            && let Err(error) = File::open(&self.0).and_then(|folder| folder.sync_all())
        {
            tracing::warn!(folder = %self.0.display(), %error, "cannot sync the ticket folder");
        }
    }
}

/// Alias of a file of the folder: its name without the extension.
pub(super) fn alias_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// Time of the file's last write; now if it cannot be read.
pub(super) fn modified(path: &Path) -> SystemTime {
    let modified = fs::metadata(path).and_then(|info| info.modified());
    modified.unwrap_or_else(|_| SystemTime::now())
}
