//! Loading a file of the ticket folder under a name, and unloading it again, as vLLM's adapter
//! routes ask.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::generation::{Generation, Name};
use super::ticket_folder::TicketFile;
use super::{Condition, Registry, RegistryError, lock};

/// Attempts to read a file that others write meanwhile.
const ATTEMPTS: usize = 8;

impl Registry {
    /// Serves the file at `path` as `name`. A file of another name is copied, so that each ticket
    /// has its own. Blocks on the disk.
    ///
    /// # Errors
    /// `path` is not a regular file below the caller's folder; the rest as [`Registry::publish`].
    pub fn load_file(
        &self,
        name: Name<'_>,
        path: &Path,
        condition: &Condition,
    ) -> Result<Arc<Generation>, RegistryError> {
        self.check_name(name.alias)?;
        self.folder.check_real(name.owner)?;
        let source = self.inside(name, path)?;
        let own = self.folder.path_of(name.owner, name.alias);
        if own.canonicalize().ok().as_ref() == Some(&source) {
            return self.load_in_place(name, own, condition);
        }
        let mut staged = self.stage()?;
        let limit = self.options.max_ticket_bytes;
        let copied = open(&source).and_then(|file| {
            // One byte more than allowed, which the check of the ticket then refuses.
            io::copy(
                &mut file.take(limit.saturating_add(1)),
                staged.as_file_mut(),
            )
        });
        copied.map_err(|error| self.staging_failed(&source, error))?;
        self.publish(name, staged, condition)
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

    /// The canonical path of a regular file below the folder of the caller, whose tenants' folders
    /// are not the operator's.
    fn inside(&self, name: Name<'_>, path: &Path) -> Result<PathBuf, RegistryError> {
        let inside = || -> io::Result<Option<PathBuf>> {
            let folder = self.folder.folder_of(name.owner).canonicalize()?;
            let file = path.canonicalize()?;
            let tenants = self.folder.tenants().canonicalize();
            let foreign = name.owner.is_none() && tenants.is_ok_and(|own| file.starts_with(own));
            let regular = fs::metadata(&file)?.is_file();
            Ok((regular && !foreign && file.starts_with(folder)).then_some(file))
        };
        // Whatever the reason: an answer must not tell which files there are outside.
        inside().ok().flatten().ok_or_else(not_inside)
    }
}

fn not_inside() -> RegistryError {
    RegistryError::NotInside
}

/// Opens a file without waiting for the other end, if a pipe has taken its place.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}
