//! The index of a ticket folder: what was read from each file, by its stamp, so that a start does
//! not read thousands of files again.
//!
//! The index is a cache. A ticket's digest is checked when it is loaded, whatever the index says.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{INDEX_PREFIX, STAGED_SUFFIX, Stamp};
use crate::registry::Facts;
use crate::ticket::{Digest, read_bounded};

const NAME: &str = ".tombola-index.json";
const VERSION: u32 = 2;
/// Size above which an index is ignored: that of some 250,000 tickets.
const MAX_BYTES: u64 = 128 << 20;

/// Facts of files, by their path relative to the ticket folder.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::registry) struct Index {
    version: u32,
    /// Digest of everything besides the files that the facts depend on.
    bound_to: Digest,
    entries: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    facts: Facts,
}

impl Index {
    /// An empty index; `binding` says what the facts depend on besides the files.
    pub fn new(binding: &str) -> Self {
        Self {
            version: VERSION,
            bound_to: Digest::of(binding.as_bytes()),
            entries: BTreeMap::new(),
        }
    }

    /// Reads the index at `path`. One that is damaged or of another binding is empty; the log says
    /// so.
    pub fn read(path: &Path, binding: &str) -> Self {
        let empty = Self::new(binding);
        let read = match read_bounded(path, MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes).map_err(|e| e.to_string()),
            Err(_) if !path.exists() => return empty,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(index) if index.version == VERSION && index.bound_to == empty.bound_to => index,
            Ok(_) => {
                tracing::info!("the ticket index is of another base or version: read all tickets");
                empty
            }
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "the ticket index is damaged: read all tickets");
                empty
            }
        }
    }

    /// Writes the index to a temporary file and renames it to `path`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(INDEX_PREFIX).suffix(STAGED_SUFFIX);
        let mut staged = builder.tempfile_in(folder)?;
        staged.write_all(&serde_json::to_vec(self)?)?;
        // Without this, a power cut may leave an empty index.
        staged.as_file().sync_all()?;
        staged.persist(path).map_err(|refused| refused.error)?;
        Ok(())
    }

    /// Facts of the file at `path` below `root`, if its stamp has not changed.
    pub fn facts(&self, root: &Path, path: &Path, stamp: &Stamp) -> Option<&Facts> {
        let entry = self.entries.get(&key(root, path)?)?;
        (entry.stamp == *stamp).then_some(&entry.facts)
    }

    /// Whether the file at `path` below `root` was served, with whatever content.
    pub fn lists(&self, root: &Path, path: &Path) -> bool {
        key(root, path).is_some_and(|key| self.entries.contains_key(&key))
    }

    /// Adds a file.
    pub fn insert(&mut self, root: &Path, path: &Path, stamp: Stamp, facts: Facts) {
        if let Some(key) = key(root, path) {
            self.entries.insert(key, Entry { stamp, facts });
        }
    }
}

/// Where the index of the folder `root` is: in it, or if it cannot be written, in `cache`.
pub(in crate::registry) fn index_path(root: &Path, cache: Option<&Path>) -> PathBuf {
    match cache {
        None => root.join(NAME),
        Some(cache) => {
            let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
            let digest = Digest::of(root.as_os_str().as_encoded_bytes()).to_string();
            cache.join(format!("tickets-{digest:.16}.json"))
        }
    }
}

fn key(root: &Path, path: &Path) -> Option<String> {
    Some(path.strip_prefix(root).ok()?.to_str()?.to_owned())
}
