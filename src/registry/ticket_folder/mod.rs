//! The ticket folder on disk: `<alias>.safetensors` of the operator, the same below
//! `tenants/<tenant>/` of each tenant, and temporary files of uploads.
//!
//! Every write goes through [`Folder::attempt`], which notes a full disk or a read-only folder.

mod index;
mod listing;
mod lock;
mod stamp;
mod trouble;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use tempfile::NamedTempFile;

pub(super) use index::{Index, index_path};
pub use listing::FileFault;
pub(super) use listing::{Listing, TicketFile};
pub(super) use stamp::Stamp;
pub use trouble::FolderTrouble;

use super::{RegistryError, lock as locked};
use crate::access::Tenant;
use lock::Guard;

const EXTENSION: &str = "safetensors";
/// Folder that holds one folder per tenant.
const TENANTS: &str = "tenants";
/// Uploads in progress are named `.upload-*.tmp`; a killed process leaves them behind.
const STAGED_PREFIX: &str = ".upload-";
const STAGED_SUFFIX: &str = ".tmp";
/// An index in the making is named `.tombola-index-*.tmp`.
const INDEX_PREFIX: &str = ".tombola-index-";

/// The folder that holds the tickets.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    guard: Mutex<Guard>,
    trouble: Mutex<Option<FolderTrouble>>,
    /// Error that the next writes fail with.
    #[cfg(test)]
    pub fault: Mutex<Option<io::ErrorKind>>,
}

impl Folder {
    /// Opens the folder, creates it if it is missing, locks it, and removes the files of killed
    /// uploads. A folder that cannot be written is opened without a lock.
    ///
    /// # Errors
    /// Another server has locked the folder, or it can be neither created nor read.
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        let error = |action| {
            move |error| RegistryError::Io {
                action,
                path: root.to_owned(),
                error,
            }
        };
        fs::create_dir_all(root).map_err(error("create the ticket folder"))?;
        let guard = Guard::acquire(root)?;
        let trouble = match guard {
            Guard::ReadOnly => {
                let folder = root.display();
                let what = "the ticket folder is read-only: serving it without a lock";
                tracing::warn!(%folder, "{what}");
                Some(FolderTrouble::ReadOnly)
            }
            Guard::Locked(_) => {
                remove_left_overs(root).map_err(error("list the ticket folder"))?;
                None
            }
            Guard::Unsupported => None,
        };
        Ok(Self {
            root: root.to_owned(),
            guard: Mutex::new(guard),
            trouble: Mutex::new(trouble),
            #[cfg(test)]
            fault: Mutex::default(),
        })
    }

    /// Every ticket file, and every file that looks like one and cannot be served.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Listing, RegistryError> {
        Listing::read(&self.root).map_err(|error| RegistryError::Io {
            action: "list the ticket folder",
            path: self.root.clone(),
            error,
        })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Path of the file of `owner`'s ticket; without an owner, of the public one.
    pub fn path_of(&self, owner: Option<&Tenant>, alias: &str) -> PathBuf {
        self.folder_of(owner).join(format!("{alias}.{EXTENSION}"))
    }

    /// Path of the folder of `owner`'s tickets; without an owner, of the public ones.
    pub fn folder_of(&self, owner: Option<&Tenant>) -> PathBuf {
        match owner {
            Some(tenant) => self.tenants().join(tenant.as_str()),
            None => self.root.clone(),
        }
    }

    /// Path of the folder that holds the tenants' folders.
    pub fn tenants(&self) -> PathBuf {
        self.root.join(TENANTS)
    }

    /// Stamp of the file at `path`, or of a link's target; `None` if there is none.
    pub fn stamp(&self, path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().map(|info| Stamp::of(&info))
    }

    /// Stamp of the regular file at `path`, or at the end of a link that stays inside the folder.
    pub fn stamp_inside(&self, path: &Path) -> Option<Stamp> {
        let target = path.canonicalize().ok()?;
        let inside = target.starts_with(self.root.canonicalize().ok()?);
        let info = fs::symlink_metadata(&target).ok()?;
        (inside && info.is_file()).then(|| Stamp::of(&info))
    }

    /// Whether the folder cannot be written, so that it is served without a lock.
    pub fn is_read_only(&self) -> bool {
        matches!(*locked(&self.guard), Guard::ReadOnly)
    }

    /// What keeps the folder from being written, as of the last write.
    pub fn trouble(&self) -> Option<FolderTrouble> {
        *locked(&self.trouble)
    }

    /// Creates a temporary file in the folder, removed when dropped.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn stage(&self) -> Result<NamedTempFile, RegistryError> {
        self.attempt("write to the ticket folder", &self.root, || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(STAGED_PREFIX).suffix(STAGED_SUFFIX);
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                builder.permissions(fs::Permissions::from_mode(0o644));
            }
            builder.tempfile_in(&self.root)
        })
    }

    /// Checks that no link leads to the folder of `owner`'s tickets: one that does is not read.
    ///
    /// # Errors
    /// There is such a link.
    pub fn check_real(&self, owner: Option<&Tenant>) -> Result<(), RegistryError> {
        let folders = owner.map(|_| [self.tenants(), self.folder_of(owner)]);
        let mut folders = folders.into_iter().flatten();
        match folders.find(|folder| folder.is_symlink()) {
            Some(link) => Err(RegistryError::LinkedFolder(link)),
            None => Ok(()),
        }
    }

    /// Syncs a staged file to disk.
    ///
    /// # Errors
    /// The disk is full, or fails.
    pub fn sync_staged(&self, staged: &NamedTempFile) -> Result<(), RegistryError> {
        self.attempt("write", staged.path(), || staged.as_file().sync_all())?;
        self.has_room();
        Ok(())
    }

    /// Renames a staged and synced file to `path`, a ticket's. Without `replace`, an existing file
    /// is an [`io::ErrorKind::AlreadyExists`] error.
    ///
    /// # Errors
    /// The folder cannot be written, or the file exists.
    pub fn place(
        &self,
        staged: NamedTempFile,
        path: &Path,
        replace: bool,
    ) -> Result<(), RegistryError> {
        self.attempt("write", path, || {
            self.create_parents(path)?;
            let placed = if replace {
                staged.persist(path)
            } else {
                staged.persist_noclobber(path)
            };
            placed.map_err(|refused| refused.error)?;
            sync_parent(path);
            Ok(())
        })
    }

    /// Removes a ticket's file; a missing file is no error.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove(&self, path: &Path) -> Result<(), RegistryError> {
        self.attempt("remove", path, || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                sync_parent(path);
                Ok(())
            }
        })
    }

    /// Notes that data has reached the disk.
    fn has_room(&self) {
        *locked(&self.trouble) = None;
    }

    /// Runs a write, and notes its outcome: a read-only folder is trouble until a write succeeds, a
    /// full disk until data is synced, since a full disk still takes new names and removals.
    pub fn attempt<T>(
        &self,
        action: &'static str,
        path: &Path,
        write: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, RegistryError> {
        match self.writable().and_then(|()| write()) {
            Ok(done) => {
                let mut trouble = locked(&self.trouble);
                *trouble = trouble.filter(|trouble| *trouble != FolderTrouble::ReadOnly);
                Ok(done)
            }
            Err(error) => Err(self.failed(action, path, error)),
        }
    }

    /// The error of a failed write, whose cause is noted.
    pub fn failed(&self, action: &'static str, path: &Path, error: io::Error) -> RegistryError {
        if let Some(trouble) = FolderTrouble::of(&error) {
            let before = locked(&self.trouble).replace(trouble);
            if before != Some(trouble) {
                let folder = self.root.display();
                tracing::warn!(%folder, %error, "the ticket folder cannot be written");
            }
        }
        RegistryError::Io {
            action,
            path: path.to_owned(),
            error,
        }
    }

    /// Writes a little to see whether the trouble is over; without trouble, does nothing.
    pub fn probe(&self) {
        const BYTES: usize = 1 << 20;
        if self.trouble().is_none() {
            return;
        }
        let probed = self.stage().and_then(|staged| {
            self.attempt("write", staged.path(), || {
                io::Write::write_all(&mut staged.as_file(), &vec![0; BYTES])?;
                staged.as_file().sync_all()
            })
        });
        if probed.is_ok() {
            self.has_room();
            tracing::info!(folder = %self.root.display(), "the ticket folder can be written again");
        }
    }

    /// Takes the lock if the folder was read-only when it was opened.
    fn writable(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *locked(&self.fault) {
            return Err(kind.into());
        }
        let mut guard = locked(&self.guard);
        if matches!(*guard, Guard::ReadOnly) {
            *guard = Guard::acquire(&self.root).map_err(io::Error::other)?;
            if matches!(*guard, Guard::ReadOnly) {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
        }
        Ok(())
    }

    /// Creates a tenant's folder, durably.
    fn create_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|parent| !parent.exists()) else {
            return Ok(());
        };
        fs::create_dir_all(parent)?;
        sync(&self.root);
        sync(&self.root.join(TENANTS));
        Ok(())
    }
}

/// Removes the files of killed uploads.
fn remove_left_overs(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let temporary = [STAGED_PREFIX, INDEX_PREFIX];
        let temporary = temporary.iter().any(|prefix| name.starts_with(prefix));
        let staged = temporary && name.ends_with(STAGED_SUFFIX);
        if staged && let Err(error) = fs::remove_file(entry.path()) {
            let file = entry.path();
            tracing::warn!(file = %file.display(), %error, "cannot remove a left-over upload");
        }
    }
    Ok(())
}

/// Syncs the folder of a file, so that its rename or removal survives a power cut.
fn sync_parent(path: &Path) {
    if let Some(parent) = path.parent() {
        sync(parent);
    }
}

/// Syncs a folder. What changed in it is visible already, so a failure is logged, not returned.
fn sync(folder: &Path) {
    // Only Unix can open a folder as a file.
    if cfg!(unix)
        && let Err(error) = File::open(folder).and_then(|folder| folder.sync_all())
    {
        tracing::warn!(folder = %folder.display(), %error, "cannot sync the ticket folder");
    }
}

/// Time of the file's last write; now if it cannot be read.
pub(super) fn modified(path: &Path) -> SystemTime {
    let modified = fs::metadata(path).and_then(|info| info.modified());
    modified.unwrap_or_else(|_| SystemTime::now())
}
