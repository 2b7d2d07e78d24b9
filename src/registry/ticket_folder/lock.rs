//! The lock of a ticket folder, which one server holds.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::registry::RegistryError;

/// The lock file. It stays behind; only the lock on it counts, which ends with its process.
const NAME: &str = ".tombola.lock";

/// Whether this server may write to its ticket folder.
#[derive(Debug)]
pub(super) enum Guard {
    /// The folder is locked while the file is open.
    Locked(#[expect(dead_code, reason = "holds the lock")] File),
    /// The file system has no locks.
    Unsupported,
    /// The folder cannot be written.
    ReadOnly,
}

impl Guard {
    /// Locks the folder.
    ///
    /// # Errors
    /// Another server holds the lock, or the lock file is unusable.
    pub fn acquire(folder: &Path) -> Result<Self, RegistryError> {
        let path = folder.join(NAME);
        let mut file = match open(&path) {
            Ok(file) => file,
            Err(error) if denies_writing(&error) => return Ok(Self::ReadOnly),
            Err(error) => {
                let action = "open";
                return Err(RegistryError::Io {
                    action,
                    path,
                    error,
                });
            }
        };
        match file.try_lock() {
            Ok(()) => {
                let written = file
                    .set_len(0)
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                if let Err(error) = written {
                    tracing::debug!(%error, "cannot write the process id into the lock file");
                }
                Ok(Self::Locked(file))
            }
            Err(TryLockError::WouldBlock) => Err(RegistryError::InUse {
                folder: folder.to_owned(),
                by: holder(file),
            }),
            Err(TryLockError::Error(error)) => {
                let folder = folder.display();
                tracing::warn!(
                    %folder, %error,
                    "the file system cannot lock the ticket folder: start no second server on it"
                );
                Ok(Self::Unsupported)
            }
        }
    }
}

/// Opens the lock file without following a link or waiting for the other end of a pipe.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options.open(path)
}

fn denies_writing(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// The process that holds the lock, for a message.
fn holder(file: File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    }
}
