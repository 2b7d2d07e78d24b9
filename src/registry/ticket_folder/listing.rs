//! The files of a ticket folder, by their metadata alone: nothing is opened.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, FileType};
use std::io;
use std::path::{Path, PathBuf};

use super::{EXTENSION, Stamp, TENANTS};
use crate::access::{Tenant, TenantError};

/// A regular file with the name of a ticket, or a link to one inside the folder. Its content is not
/// checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct TicketFile {
    /// The tenant in whose folder it lies; `None` if it is public.
    pub owner: Option<Tenant>,
    /// File name without the extension. Not checked either.
    pub alias: String,
    /// Path of the file, below the ticket folder.
    pub path: PathBuf,
    /// Stamp of the file, of a link's target.
    pub stamp: Stamp,
}

/// Reason why a file is refused without being read.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    #[error("it is {0}; a ticket is a regular file")]
    Kind(&'static str),
    #[error("it is a link; the folders of tenants are real ones")]
    LinkedFolder,
    #[error("it links to a file outside the ticket folder")]
    Outside,
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("its name is not UTF-8")]
    NotUtf8,
    #[error(transparent)]
    Tenant(TenantError),
}

/// The files of a ticket folder, each kind by path.
#[derive(Debug, Default)]
pub(in crate::registry) struct Listing {
    /// Candidates.
    pub tickets: Vec<TicketFile>,
    /// Files and tenant folders that cannot be served, each with the reason.
    pub refused: Vec<(PathBuf, FileFault)>,
    /// Every folder that was read, the root first.
    pub folders: Vec<PathBuf>,
}

impl Listing {
    /// Lists `root` and its tenants' folders.
    ///
    /// # Errors
    /// `root` cannot be read. Another folder that cannot be read is a refused file.
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        let canonical = root.canonicalize()?;
        listing.read_folder(root, None, &canonical)?;
        listing.read_tenants(&root.join(TENANTS), &canonical);
        listing.tickets.sort_by(|a, b| a.path.cmp(&b.path));
        listing.refused.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    fn read_tenants(&mut self, tenants: &Path, canonical: &Path) {
        let folder = match fs::symlink_metadata(tenants) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.refuse(tenants, FileFault::Unreadable(error)),
            Ok(info) if info.is_symlink() => {
                return self.refuse(tenants, FileFault::LinkedFolder);
            }
            Ok(info) if !info.is_dir() => return,
            Ok(_) => fs::read_dir(tenants),
        };
        let entries = match folder.and_then(Iterator::collect::<io::Result<Vec<DirEntry>>>) {
            Ok(entries) => entries,
            Err(error) => return self.refuse(tenants, FileFault::Unreadable(error)),
        };
        self.folders.push(tenants.to_owned());
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            let parsed = name.to_str().ok_or(FileFault::NotUtf8);
            let tenant = parsed.and_then(|name| name.parse().map_err(FileFault::Tenant));
            let listed = tenant.and_then(|tenant: Tenant| match entry.file_type() {
                Ok(kind) if kind.is_dir() => self
                    .read_folder(&path, Some(&tenant), canonical)
                    .map_err(FileFault::Unreadable),
                Ok(kind) if kind.is_symlink() => Err(FileFault::LinkedFolder),
                // Notes beside the folders are the operator's business.
                Ok(_) => Ok(()),
                Err(error) => Err(FileFault::Unreadable(error)),
            });
            if let Err(fault) = listed {
                self.refuse(&path, fault);
            }
        }
    }

    fn read_folder(
        &mut self,
        folder: &Path,
        owner: Option<&Tenant>,
        canonical: &Path,
    ) -> io::Result<()> {
        let entries = fs::read_dir(folder)?;
        self.folders.push(folder.to_owned());
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if path.extension() != Some(OsStr::new(EXTENSION)) {
                continue;
            }
            let listed = stamp(&entry, canonical).and_then(|stamp| {
                let alias = path.file_stem().and_then(OsStr::to_str);
                let alias = alias.ok_or(FileFault::NotUtf8)?.to_owned();
                Ok(stamp.map(|stamp| (alias, stamp)))
            });
            match listed {
                Ok(Some((alias, stamp))) => self.tickets.push(TicketFile {
                    owner: owner.cloned(),
                    alias,
                    path,
                    stamp,
                }),
                Ok(None) => {}
                Err(fault) => self.refuse(&path, fault),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, path: &Path, fault: FileFault) {
        self.refused.push((path.to_owned(), fault));
    }
}

/// Stamp of a regular file, or of the file inside the folder that a link leads to. `None` if it has
/// gone meanwhile.
fn stamp(entry: &DirEntry, canonical: &Path) -> Result<Option<Stamp>, FileFault> {
    let read = || -> io::Result<_> {
        let path = entry.path();
        let link = entry.file_type()?.is_symlink();
        let target = if link { path.canonicalize()? } else { path };
        Ok((fs::symlink_metadata(&target)?, link.then_some(target)))
    };
    let (info, target) = match read() {
        Ok(found) => found,
        // A link that leads nowhere stays; a file that is gone does not matter.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(entry.path()) {
                Ok(_) => Err(FileFault::Unreadable(error)),
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(FileFault::Unreadable(error)),
    };
    if target.is_some_and(|target| !target.starts_with(canonical)) {
        return Err(FileFault::Outside);
    }
    match kind(info.file_type()) {
        None => Ok(Some(Stamp::of(&info))),
        Some(kind) => Err(FileFault::Kind(kind)),
    }
}

/// What a file is, unless it is a regular one.
fn kind(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_block_device() || kind.is_char_device() {
            return Some("a device");
        }
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    (!kind.is_file()).then_some("a special file")
}
