//! Stamps: what the file system says about a file without reading it.

use std::fs::Metadata;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Size, times and inode of a file. A file whose stamp is unchanged has most likely the same
/// content; the digest settles it when the ticket is loaded. Stamps are compared for equality
/// alone, so a clock that jumps is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::registry) struct Stamp {
    bytes: u64,
    /// Nanoseconds of the last write since the epoch.
    modified: i64,
    /// Nanoseconds of the last change of content, name or mode; 0 where there is none.
    changed: i64,
    /// Inode; 0 where there is none.
    inode: u64,
}

impl Stamp {
    /// Stamp of the file with this metadata.
    pub fn of(info: &Metadata) -> Self {
        let (changed, inode) = change_and_inode(info);
        Self {
            bytes: info.len(),
            modified: modified(info),
            changed,
            inode,
        }
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether another file has taken the place of the one with the stamp `before`, as a rename
    /// does. `false` where there are no inodes.
    pub fn is_another_file(&self, before: &Self) -> bool {
        self.inode != before.inode
    }

    /// Time of the last write.
    pub fn modified(&self) -> SystemTime {
        let distance = Duration::from_nanos(self.modified.unsigned_abs());
        let time = match self.modified {
            0.. => UNIX_EPOCH.checked_add(distance),
            _ => UNIX_EPOCH.checked_sub(distance),
        };
        time.unwrap_or(UNIX_EPOCH)
    }
}

/// Saturates some 290 years from the epoch.
fn modified(info: &Metadata) -> i64 {
    let nanoseconds = |nanoseconds: u128| i64::try_from(nanoseconds).unwrap_or(i64::MAX);
    match info.modified().map(|time| time.duration_since(UNIX_EPOCH)) {
        Ok(Ok(after)) => nanoseconds(after.as_nanos()),
        Ok(Err(before)) => -nanoseconds(before.duration().as_nanos()),
        Err(_) => 0,
    }
}

#[cfg(unix)]
fn change_and_inode(info: &Metadata) -> (i64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let changed = info.ctime().saturating_mul(1_000_000_000);
    (changed.saturating_add(info.ctime_nsec()), info.ino())
}

#[cfg(not(unix))]
fn change_and_inode(_: &Metadata) -> (i64, u64) {
    (0, 0)
}
