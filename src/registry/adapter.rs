//! Loading a file of the ticket folder under a name, and unloading it again, as vLLM's adapter
//! routes ask.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::generation::{Generation, Name};
use super::ticket_folder::TicketFile;
use super::{Condition, Registry, RegistryError, lock};
use crate::ticket::{TicketError, open_regular};

/// Attempts to read a file that others write meanwhile.
const ATTEMPTS: usize = 8;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// A file of the ticket folder that may be served under a name.
#[derive(Clone, Debug)]
pub struct FoundFile {
    path: PathBuf,
    bytes: u64,
    in_place: bool,
}

impl FoundFile {
    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that serving the file writes: none, if it has the name already.
    pub fn copied_bytes(&self) -> u64 {
        if self.in_place { 0 } else { self.bytes }
    }
}

impl Registry {
    /// Looks for the file at `path`, to serve it as `name`. A relative path starts at the caller's
    /// folder, or else at the working directory. Blocks on the disk.
    ///
    /// # Errors
    /// The name is malformed; `path` is not a regular file below the caller's folder, or is larger
    /// than a ticket may be.
    pub fn find_file(&self, name: Name<'_>, path: &Path) -> Result<FoundFile, RegistryError> {
        self.check_name(name.alias)?;
        self.folder.check_real(name.owner)?;
        let in_folder = self.folder.folder_of(name.owner).join(path);
        let path = match path.is_relative() && in_folder.exists() {
            true => in_folder,
            false => path.to_owned(),
        };
        let (path, bytes) = self.inside(name, &path)?;
        let limit = self.options.max_ticket_bytes;
        if bytes > limit {
            return Err(RegistryError::Invalid(TicketError::FileTooLarge { limit }));
        }
        let own = self.folder.path_of(name.owner, name.alias);
        Ok(FoundFile {
            in_place: own.canonicalize().ok().as_ref() == Some(&path),
            path,
            bytes,
        })
    }

    /// Serves a file as `name`. A file of another name is copied, so that each ticket has its own.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read; the rest as [`Registry::publish`].
    pub fn load_file(
        &self,
        name: Name<'_>,
        file: &FoundFile,
        condition: &Condition,
    ) -> Result<Arc<Generation>, RegistryError> {
        if file.in_place {
            let own = self.folder.path_of(name.owner, name.alias);
            return self.load_in_place(name, own, condition);
        }
        let mut staged = self.stage()?;
        self.copy(file, &mut staged)?;
        self.publish(name, staged, condition)
    }

    /// Copies a file as far as its size was when it was found.
    fn copy(&self, file: &FoundFile, staged: &mut NamedTempFile) -> Result<(), RegistryError> {
        let path = &file.path;
        let unreadable = |error| {
            RegistryError::Invalid(TicketError::Io {
                action: "read",
                path: path.clone(),
                error,
            })
        };
        let opened = open_regular(path).map_err(RegistryError::Invalid)?;
        let mut source = opened.take(file.bytes);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            let written = staged.as_file_mut().write_all(&buffer[..read]);
            written.map_err(|error| self.staging_failed(staged.path(), error))?;
        }
    }

    /// Stops serving a ticket and leaves its file where it is: it is served again when it is
    /// loaded, when it changes, or after a restart. Running leases keep their generation.
    ///
    /// # Errors
    /// There is no such ticket, or it is public while the caller is a tenant.
    pub fn unload(&self, name: Name<'_>) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = self.changeable(name)?;
        {
            let mut files = lock(&self.files);
            files.unloaded(&generation);
            files.name_is_free(&generation.path);
        }
        self.names_mut().remove(name.owner, name.alias);
        self.refresh_pins();
        self.forget(&generation);
        Ok(generation)
    }

    fn load_in_place(
        &self,
        name: Name<'_>,
        path: PathBuf,
        condition: &Condition,
    ) -> Result<Arc<Generation>, RegistryError> {
        // An upload that comes between the read and the lock wins; it was acknowledged.
        for _ in 0..ATTEMPTS {
            let stamp = self.folder.stamp(&path).ok_or_else(not_inside)?;
            let file = TicketFile {
                owner: name.owner.cloned(),
                alias: name.alias.to_owned(),
                path: path.clone(),
                stamp,
            };
            let facts = self.read_facts(&file)?;
            let _writing = lock(&self.writing);
            self.check_free(name, &path, condition)?;
            if self.folder.stamp(&path) == Some(stamp) {
                self.adopt(&file, facts)?;
                return self.changeable(name);
            }
        }
        let reason = format!("{} is being written", path.display());
        Err(RegistryError::LoadFailed(reason))
    }

    /// The canonical path and the size of a regular file below the folder of the caller, whose
    /// tenants' folders are not the operator's.
    fn inside(&self, name: Name<'_>, path: &Path) -> Result<(PathBuf, u64), RegistryError> {
        let inside = || -> io::Result<Option<(PathBuf, u64)>> {
            let folder = self.folder.folder_of(name.owner).canonicalize()?;
            let file = path.canonicalize()?;
            let tenants = self.folder.tenants().canonicalize();
            let foreign = name.owner.is_none() && tenants.is_ok_and(|own| file.starts_with(own));
            let info = fs::metadata(&file)?;
            let found = info.is_file() && !foreign && file.starts_with(folder);
            Ok(found.then_some((file, info.len())))
        };
        // Whatever the reason: an answer must not tell which files there are outside.
        inside().ok().flatten().ok_or_else(not_inside)
    }
}

fn not_inside() -> RegistryError {
    RegistryError::NotInside
}
