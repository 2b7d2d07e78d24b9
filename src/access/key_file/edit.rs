//! Edits of a key file, each of which a reader sees as a whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{KeyFile, KeyFileError};

/// Mode of a new key file: its owner's alone.
const MODE: u32 = 0o600;

impl KeyFile {
    /// Changes the file at `path` under a lock, so that no edit is lost, and replaces it
    /// atomically. A missing file counts as empty and is created with mode 0600; an existing one
    /// keeps its mode and owner. A symbolic link stays, and what it points to is replaced.
    ///
    /// # Errors
    /// The file cannot be read, locked or written, or the change itself fails, which leaves the
    /// file as it was.
    pub fn edit<T>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, KeyFileError>,
    ) -> Result<T, KeyFileError> {
        let failed = |source| {
            let path = path.to_owned();
            KeyFileError::Write { path, source }
        };
        let target = match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            target => target.map_err(failed)?,
        };
        let _lock = lock(&target).map_err(failed)?;
        let mut file = match Self::read(&target) {
            Err(KeyFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::default()
            }
            file => file?,
        };
        let result = change(&mut file)?;
        replace(&target, &file).map_err(failed)?;
        Ok(result)
    }
}

/// Locks edits of `target` until the returned file is dropped. The lock has a file of its own, as
/// `target` itself is replaced.
fn lock(target: &Path) -> io::Result<File> {
    let mut name = target.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(PathBuf::from(name))?;
    lock.lock()?;
    Ok(lock)
}

/// Writes a temporary file beside `target`, syncs it, and renames it.
fn replace(target: &Path, file: &KeyFile) -> io::Result<()> {
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = NamedTempFile::new_in(folder)?;
    match fs::metadata(target) {
        Ok(old) => {
            let new = temporary.as_file().metadata()?;
            if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                fchown(temporary.as_file(), Some(old.uid()), Some(old.gid()))?;
            }
            let mode = Permissions::from_mode(old.mode() & 0o777);
            temporary.as_file().set_permissions(mode)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = Permissions::from_mode(MODE);
            temporary.as_file().set_permissions(mode)?;
        }
        Err(error) => return Err(error),
    }
    let mut text = serde_json::to_string_pretty(file)?;
    text.push('\n');
    temporary.write_all(text.as_bytes())?;
    temporary.as_file().sync_all()?;
    temporary.persist(target)?;
    File::open(folder)?.sync_all()
}
