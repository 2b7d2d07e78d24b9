//! Writes to the ticket folder: a staged file becomes a ticket, a ticket is deleted.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tempfile::NamedTempFile;

use super::{
    Condition, Generation, Name, Registry, RegistryError, StoredFiles, WithTraining, lock,
};

impl Registry {
    /// Checks a staged file and makes it the ticket `name`. On return the file is on disk and
    /// every new lease is of it; running leases keep their generation. If several callers publish
    /// one new name at once to create it, exactly one succeeds.
    ///
    /// # Errors
    /// The name is malformed, reserved or taken; the condition does not hold; the file is not a
    /// ticket for this base; the folder cannot be written. The alias then keeps its generation.
    pub fn publish(
        &self,
        name: Name<'_>,
        staged: NamedTempFile,
        condition: &Condition,
    ) -> Result<Arc<Generation>, RegistryError> {
        let published = self.publish_with_training(name, staged, condition)?;
        Ok(published.generation)
    }

    /// As [`Registry::publish`], with the provenance of the published file.
    ///
    /// # Errors
    /// As [`Registry::publish`].
    pub fn publish_with_training(
        &self,
        name: Name<'_>,
        staged: NamedTempFile,
        condition: &Condition,
    ) -> Result<WithTraining, RegistryError> {
        let alias = name.alias;
        self.check_name(alias)?;
        let path = self.folder.path_of(name.owner, alias);
        let check = || {
            self.check_free(name, &path, condition)?;
            self.folder.check_real(name.owner)
        };
        check()?;
        let (facts, training) = {
            let ticket = self.read(staged.path())?;
            (self.facts(&ticket), ticket.metadata().training.clone())
        };
        self.folder.sync_staged(&staged)?;

        let _writing = lock(&self.writing);
        check()?;
        self.check_room_beside_pins(name, &facts)?;
        match self.folder.place(staged, &path, condition.replace) {
            Ok(()) => {}
            // A file that was refused at the start, or was added since.
            Err(RegistryError::Io { error, .. })
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                return Err(match path.is_dir() {
                    true => RegistryError::Obstructed(alias.to_owned()),
                    false => RegistryError::Exists(alias.to_owned()),
                });
            }
            Err(RegistryError::Io { error, .. }) if error.kind() == io::ErrorKind::IsADirectory => {
                return Err(RegistryError::Obstructed(alias.to_owned()));
            }
            Err(error) => return Err(error),
        }
        self.note_placed(&path);
        let generation = Arc::new(Generation::new(name, path, facts, SystemTime::now()));
        self.point_at(Arc::clone(&generation));
        Ok(WithTraining {
            generation,
            training,
        })
    }

    /// Checks that the name may be published: that the condition holds of the ticket that it points
    /// at, and that no file has the name in another case, which a restart might serve instead.
    pub(super) fn check_free(
        &self,
        name: Name<'_>,
        path: &Path,
        condition: &Condition,
    ) -> Result<(), RegistryError> {
        let alias = name.alias;
        let found = self.names().any_case(name.owner, alias).cloned();
        condition.check_publish(alias, found.as_deref())?;
        let files = lock(&self.files);
        match files.other_case(path).and_then(Path::file_stem) {
            Some(existing) => Err(RegistryError::DiffersInCase {
                alias: alias.to_owned(),
                existing: existing.to_string_lossy().into_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The files in the folder of the name's owner, besides that of the name itself.
    pub fn stored_beside(&self, name: Name<'_>) -> StoredFiles {
        let folder = self.folder.folder_of(name.owner);
        let own = self.folder.path_of(name.owner, name.alias);
        lock(&self.files).stored(&folder, &own)
    }

    /// Deletes the caller's ticket `name.alias` and its file, also if it was unloaded; running
    /// leases keep their generation.
    ///
    /// # Errors
    /// The alias is unknown, or public while the caller is a tenant; the condition does not hold;
    /// the file cannot be removed. The ticket then stays.
    pub fn remove(
        &self,
        name: Name<'_>,
        condition: &Condition,
    ) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = match self.changeable(name) {
            Err(error) => self.unloaded(name).ok_or(error)?,
            served => served?,
        };
        condition.check_match(name.alias, Some(&generation))?;
        self.folder.remove(&generation.path)?;
        self.note_removed(&generation.path);
        self.names_mut().remove(name.owner, name.alias);
        self.refresh_pins();
        self.forget(&generation);
        Ok(generation)
    }

    /// The ticket of that name that was unloaded, if its file is still there.
    fn unloaded(&self, name: Name<'_>) -> Option<Arc<Generation>> {
        let path = self.folder.path_of(name.owner, name.alias);
        lock(&self.files).before_unload(&path).cloned()
    }
}
