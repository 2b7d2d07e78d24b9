//! What became of each file of the ticket folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::generation::Generation;
use super::ticket_folder::Stamp;

/// A file that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFile {
    /// Path of the file, or of a tenant's folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What an owner's folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredFiles {
    /// Number of files, whether or not they are served.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The fate of each file, by path.
#[derive(Debug, Default)]
pub(super) struct Files {
    by_path: BTreeMap<PathBuf, Seen>,
    /// Whether something has changed since [`Files::take_changed`].
    changed: bool,
}

/// What is known of one file.
#[derive(Debug)]
struct Seen {
    /// Stamp that its fate was decided at; `None` if the file was not looked into.
    stamp: Option<Stamp>,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    Served,
    Refused(String),
    /// Left on disk by `unload`: not served until it changes.
    Unloaded(Arc<Generation>),
}

impl Files {
    /// Notes that the file is served.
    pub fn served(&mut self, path: &Path, stamp: Stamp) {
        self.set(path, Some(stamp), Fate::Served);
    }

    /// Notes that the file is not served any more, but stays.
    pub fn unloaded(&mut self, generation: &Arc<Generation>) {
        if let Some(seen) = self.by_path.get_mut(&generation.path) {
            seen.fate = Fate::Unloaded(Arc::clone(generation));
            self.changed = true;
        }
    }

    /// What the file was before it was unloaded; `None` if it was not.
    pub fn before_unload(&self, path: &Path) -> Option<&Arc<Generation>> {
        match &self.by_path.get(path)?.fate {
            Fate::Unloaded(generation) => Some(generation),
            _ => None,
        }
    }

    /// Notes that the file is refused; says whether that is news.
    pub fn refused(&mut self, path: &Path, stamp: Option<Stamp>, reason: String) -> bool {
        let same = |seen: &Seen| match &seen.fate {
            Fate::Refused(known) => *known == reason && seen.stamp == stamp,
            _ => false,
        };
        let news = !self.by_path.get(path).is_some_and(same);
        self.set(path, stamp, Fate::Refused(reason));
        news
    }

    /// Forgets a file that is gone.
    pub fn gone(&mut self, path: &Path) {
        self.changed |= self.by_path.remove(path).is_some();
    }

    /// Whether the fate of the file was decided at this stamp.
    pub fn is_known(&self, path: &Path, stamp: &Stamp) -> bool {
        let seen = self.by_path.get(path);
        seen.is_some_and(|seen| seen.stamp.as_ref() == Some(stamp))
    }

    /// Stamp at which the fate of the file was decided.
    pub fn stamp(&self, path: &Path) -> Option<Stamp> {
        self.by_path.get(path)?.stamp
    }

    /// Whether the file was refused without being looked into.
    pub fn is_unread(&self, path: &Path) -> bool {
        let seen = self.by_path.get(path);
        seen.is_some_and(|seen| seen.stamp.is_none())
    }

    /// The file beside `path` whose name differs from it in case alone.
    pub fn other_case(&self, path: &Path) -> Option<&Path> {
        let mut paths = self.by_path.keys();
        paths
            .find(|other| is_other_case(other, path))
            .map(PathBuf::as_path)
    }

    /// The files in `folder`, besides that at `except`.
    pub fn stored(&self, folder: &Path, except: &Path) -> StoredFiles {
        let mut stored = StoredFiles::default();
        for (path, seen) in self.by_path.range(folder.to_owned()..) {
            if !path.starts_with(folder) {
                break;
            }
            if path != except && path.parent() == Some(folder) {
                stored.count += 1;
                stored.bytes += seen.stamp.map_or(0, |stamp| stamp.bytes());
            }
        }
        stored
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.by_path.keys()
    }

    /// The served files.
    pub fn all_served(&self) -> impl Iterator<Item = (&PathBuf, Stamp)> {
        let served = self.by_path.iter();
        served.filter_map(|(path, seen)| match (&seen.fate, seen.stamp) {
            (Fate::Served, Some(stamp)) => Some((path, stamp)),
            _ => None,
        })
    }

    /// The refused files, by path.
    pub fn all_refused(&self) -> impl Iterator<Item = RefusedFile> {
        let files = self.by_path.iter();
        files.filter_map(|(path, seen)| match &seen.fate {
            Fate::Refused(reason) => Some(RefusedFile {
                path: path.clone(),
                reason: reason.clone(),
            }),
            _ => None,
        })
    }

    /// Lets refused files be looked into again whose names differ in case alone from that of
    /// `path`, which became free.
    pub fn name_is_free(&mut self, path: &Path) {
        let waits = |other: &PathBuf, seen: &Seen| {
            is_other_case(other, path) && matches!(seen.fate, Fate::Refused(_))
        };
        self.by_path.retain(|other, seen| !waits(other, seen));
    }

    /// Whether something has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn set(&mut self, path: &Path, stamp: Option<Stamp>, fate: Fate) {
        self.changed = true;
        self.by_path.insert(path.to_owned(), Seen { stamp, fate });
    }
}

/// Whether the names of two files differ in case alone.
fn is_other_case(a: &Path, b: &Path) -> bool {
    a != b && a.as_os_str().eq_ignore_ascii_case(b)
}
