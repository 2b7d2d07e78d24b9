//! What keeps a ticket folder from being written.

use std::fmt;
use std::io;

/// A cause that the operator has to end; until then, uploads and deletions fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderTrouble {
    /// The disk, or its quota, is full.
    DiskFull,
    /// The folder cannot be written.
    ReadOnly,
}

impl FolderTrouble {
    /// The trouble behind an error of a write, if it is one of these.
    pub fn of(error: &io::Error) -> Option<Self> {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => Some(Self::DiskFull),
            Kind::ReadOnlyFilesystem | Kind::PermissionDenied => Some(Self::ReadOnly),
            _ => None,
        }
    }
}

impl fmt::Display for FolderTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "the disk of the ticket folder is full",
            Self::ReadOnly => "the ticket folder is read-only",
        })
    }
}
