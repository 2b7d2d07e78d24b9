//! What became of each file of the ticket folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ticket_folder::Stamp;

/// A file that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFile {
    /// Path of the file, or of a tenant's folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
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

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Served,
    Refused(String),
    /// Left on disk by `unload`: not served until it changes.
    Unloaded,
}

impl Files {
    /// Notes that the file is served.
    pub fn served(&mut self, path: &Path, stamp: Stamp) {
        self.set(path, Some(stamp), Fate::Served);
    }

    /// Notes that the file is not served any more, but stays.
    pub fn unloaded(&mut self, path: &Path) {
        if let Some(seen) = self.by_path.get_mut(path) {
            seen.fate = Fate::Unloaded;
            self.changed = true;
        }
    }

    /// Notes that the file is refused; says whether that is news.
    pub fn refused(&mut self, path: &Path, stamp: Option<Stamp>, reason: String) -> bool {
        let fate = Fate::Refused(reason);
        let known = self.by_path.get(path);
        let news = known.is_none_or(|seen| seen.fate != fate || seen.stamp != stamp);
        self.set(path, stamp, fate);
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
            let same = other.as_os_str().eq_ignore_ascii_case(path);
            same && other != path && matches!(seen.fate, Fate::Refused(_))
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
