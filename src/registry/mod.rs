//! Registry of the tickets that are served: aliases that point at generations, leases that keep
//! them in memory, the byte budget of the loaded ones, and the folder on disk.
//!
//! Look-ups never block: aliases are in a concurrent map. A writer holds one lock from the first
//! change on disk until the map matches the disk.

mod generation;
mod memory;
#[cfg(test)]
mod tests;
mod ticket_folder;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use dashmap::DashMap;
use tempfile::NamedTempFile;

pub use generation::{Generation, GenerationId, Lease};
pub use ticket_folder::{FileFault, FolderTrouble};

use crate::model::TicketMemory;
use crate::ticket::{BaseManifest, BoundTicket, Ticket, TicketError, validate_name};
use memory::{CachedTicket, Memory};
use ticket_folder::{Folder, TicketFile};

/// Limits of a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Size in bytes above which a ticket file is refused.
    pub max_ticket_bytes: u64,
    /// Bytes of memory for all tickets, leased and cached.
    pub memory_budget: usize,
    /// Memory that a loaded ticket takes of this budget.
    pub ticket_memory: TicketMemory,
    /// Accept tickets made for another base if all names and shapes fit this one.
    pub allow_foreign_base: bool,
}

/// Reason why the registry refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("there is no ticket `{0}`")]
    Unknown(String),
    #[error("a ticket `{0}` exists already; pass `replace=true` to replace it")]
    Exists(String),
    #[error("`{0}` is the base's own name")]
    Reserved(String),
    #[error(transparent)]
    Name(TicketError),
    #[error(transparent)]
    Invalid(TicketError),
    #[error("the ticket needs {needed} bytes of memory; the budget is {budget} bytes")]
    TooLargeForMemory { needed: usize, budget: usize },
    #[error(
        "no memory for ticket `{alias}` ({needed} bytes) within the budget of {budget} bytes: \
         all tickets in memory are in use"
    )]
    MemoryFull {
        alias: String,
        needed: usize,
        budget: usize,
    },
    #[error(
        "the file of ticket `{alias}`, {}, changed since publication: {reason}",
        path.display()
    )]
    Changed {
        alias: String,
        path: PathBuf,
        reason: String,
    },
    #[error("{} is not served: {fault}", path.display())]
    Refused { path: PathBuf, fault: FileFault },
    #[error(
        "the ticket folder {} is in use by {by}: stop that server, or choose another folder",
        folder.display()
    )]
    InUse { folder: PathBuf, by: String },
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// An opened registry, and the files of its folder that it refused.
pub struct Opened {
    /// The registry.
    pub registry: Registry,
    /// Refused files, each with the reason. They stay on disk.
    pub refused: Vec<(PathBuf, RegistryError)>,
}

/// All tickets of one base.
#[derive(Debug)]
pub struct Registry {
    base: Arc<BaseManifest>,
    options: RegistryOptions,
    folder: Folder,
    aliases: DashMap<String, Arc<Generation>>,
    memory: Memory,
    /// Locked while the folder is changed.
    writing: Mutex<()>,
}

impl Registry {
    /// Opens a folder of tickets, and creates it if it is missing. Reads and checks every
    /// `<alias>.safetensors`, and keeps none in memory.
    ///
    /// # Errors
    /// The folder cannot be created or read. A bad ticket is no error: see [`Opened::refused`].
    pub fn open(
        dir: &Path,
        base: Arc<BaseManifest>,
        options: RegistryOptions,
    ) -> Result<Opened, RegistryError> {
        let folder = Folder::open(dir)?;
        let files = folder.list()?;
        let registry = Self {
            base,
            memory: Memory::new(options.memory_budget),
            options,
            folder,
            aliases: DashMap::new(),
            writing: Mutex::new(()),
        };
        let fault = |(path, fault): (PathBuf, FileFault)| {
            let error = RegistryError::Refused {
                path: path.clone(),
                fault,
            };
            (path, error)
        };
        let mut refused: Vec<_> = files.refused.into_iter().map(fault).collect();
        for file in files.tickets {
            if let Err(error) = registry.adopt(&file) {
                refused.push((file.path, error));
            }
        }
        Ok(Opened { registry, refused })
    }

    /// Manifest of the base that all tickets here are bound to.
    pub fn base(&self) -> &BaseManifest {
        &self.base
    }

    /// Generation that an alias points at now.
    pub fn get(&self, alias: &str) -> Option<Arc<Generation>> {
        self.aliases.get(alias).map(|entry| entry.value().clone())
    }

    /// All generations that have an alias, by alias.
    pub fn list(&self) -> Vec<Arc<Generation>> {
        let aliases = self.aliases.iter();
        let mut all: Vec<_> = aliases.map(|entry| entry.value().clone()).collect();
        all.sort_by(|a, b| a.alias().cmp(b.alias()));
        all
    }

    /// Number of aliases.
    pub fn len(&self) -> usize {
        self.aliases.len()
    }

    /// Whether there are no aliases.
    pub fn is_empty(&self) -> bool {
        self.aliases.is_empty()
    }

    /// Number of tickets in memory.
    pub fn resident(&self) -> usize {
        self.memory.tickets()
    }

    /// Leases the ticket that `alias` points at; reads its file unless it is in memory. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// The alias is unknown, the leased tickets leave too little memory, or another program has
    /// changed the file since it was published.
    pub fn lease(&self, alias: &str) -> Result<Lease, RegistryError> {
        let mut generation = self.known(alias)?;
        loop {
            let error = match self.load(&generation) {
                Ok(cached) => return Ok(Lease { generation, cached }),
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            // The ticket may have been replaced between the look-up and the read: wait until the
            // writer is done, and look again.
            let current = {
                let _writing = lock(&self.writing);
                self.known(alias)?
            };
            if current.id() == generation.id() {
                return Err(error);
            }
            generation = current;
        }
    }

    /// Creates a file in the ticket folder to write an upload into, for [`Registry::publish`].
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn stage(&self) -> Result<NamedTempFile, RegistryError> {
        self.folder.stage()
    }

    /// The error of a write to a staged file.
    pub fn staging_failed(&self, staged: &Path, error: io::Error) -> RegistryError {
        self.folder.failed("write", staged, error)
    }

    /// What keeps the folder from being written, as of the last write.
    pub fn trouble(&self) -> Option<FolderTrouble> {
        self.folder.trouble()
    }

    /// Checks a staged file and makes it the ticket `alias`. On return the file is on disk and
    /// every new lease is of it; running leases keep their generation. If several callers publish
    /// one new name at once without `replace`, exactly one succeeds.
    ///
    /// # Errors
    /// The name is malformed, reserved or taken; the file is not a ticket for this base; the
    /// folder cannot be written. The alias then keeps its generation.
    pub fn publish(
        &self,
        alias: &str,
        staged: NamedTempFile,
        replace: bool,
    ) -> Result<Arc<Generation>, RegistryError> {
        self.check_name(alias)?;
        let check_free = || {
            if self.aliases.contains_key(alias) && !replace {
                return Err(RegistryError::Exists(alias.to_owned()));
            }
            Ok(())
        };
        check_free()?;
        let ticket = self.read(staged.path())?;
        let path = self.folder.path_of(None, alias);
        self.folder.sync_staged(&staged)?;

        let _writing = lock(&self.writing);
        check_free()?;
        match self.folder.place(staged, &path, replace) {
            Ok(()) => {}
            // A file that was refused at the start, or was added since.
            Err(RegistryError::Io { error, .. })
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                return Err(RegistryError::Exists(alias.to_owned()));
            }
            Err(error) => return Err(error),
        }
        let generation = Arc::new(self.generation(alias, &path, &ticket, SystemTime::now()));
        let replaced = self.aliases.insert(alias.to_owned(), generation.clone());
        if let Some(replaced) = replaced {
            self.forget(&replaced);
        }
        Ok(generation)
    }

    /// Deletes a ticket and its file; running leases keep their generation.
    ///
    /// # Errors
    /// The alias is unknown, or the file cannot be removed; the ticket then stays.
    pub fn remove(&self, alias: &str) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = self.known(alias)?;
        self.folder.remove(&generation.path)?;
        self.aliases.remove(alias);
        self.forget(&generation);
        Ok(generation)
    }

    /// The generation that an alias points at, or the error that names the alias.
    fn known(&self, alias: &str) -> Result<Arc<Generation>, RegistryError> {
        self.get(alias)
            .ok_or_else(|| RegistryError::Unknown(alias.to_owned()))
    }

    /// Registers a file of the folder under its name.
    fn adopt(&self, file: &TicketFile) -> Result<(), RegistryError> {
        self.check_name(&file.alias)?;
        let ticket = self.read(&file.path)?;
        let created = ticket_folder::modified(&file.path);
        let generation = self.generation(&file.alias, &file.path, &ticket, created);
        self.aliases
            .insert(file.alias.clone(), Arc::new(generation));
        Ok(())
    }

    fn generation(
        &self,
        alias: &str,
        path: &Path,
        ticket: &BoundTicket,
        created: SystemTime,
    ) -> Generation {
        let bytes = self.memory_of(ticket);
        Generation::new(alias, path.to_owned(), ticket, bytes, created)
    }

    /// Upper bound of the bytes that the ticket takes in memory.
    fn memory_of(&self, ticket: &BoundTicket) -> usize {
        self.options.ticket_memory.bytes_of(ticket, &self.base)
    }

    fn check_name(&self, alias: &str) -> Result<(), RegistryError> {
        if alias == self.base.name {
            return Err(RegistryError::Reserved(alias.to_owned()));
        }
        validate_name(alias).map_err(RegistryError::Name)
    }

    /// Reads a file, binds it to the base and checks that the budget can hold it.
    fn read(&self, path: &Path) -> Result<BoundTicket, RegistryError> {
        let ticket = Ticket::read(path, self.options.max_ticket_bytes)
            .and_then(|ticket| ticket.bind(&self.base, self.options.allow_foreign_base))
            .map_err(RegistryError::Invalid)?;
        let (needed, budget) = (self.memory_of(&ticket), self.memory.budget());
        if needed > budget {
            return Err(RegistryError::TooLargeForMemory { needed, budget });
        }
        Ok(ticket)
    }

    /// Loads the generation's ticket: from memory, or else from its file.
    fn load(&self, generation: &Generation) -> Result<Arc<CachedTicket>, RegistryError> {
        let content = generation.digest();
        if let Some(cached) = self.memory.get(content) {
            return Ok(cached);
        }
        let _loading = lock(&generation.loading);
        if let Some(cached) = self.memory.get(content) {
            return Ok(cached);
        }
        let needed = generation.resident_bytes();
        let full = || RegistryError::MemoryFull {
            alias: generation.alias().to_owned(),
            needed,
            budget: self.memory.budget(),
        };
        let room = self.memory.reserve(needed).ok_or_else(full)?;
        let changed = |reason: String| RegistryError::Changed {
            alias: generation.alias().to_owned(),
            path: generation.path.clone(),
            reason,
        };
        let ticket = self
            .read(&generation.path)
            .map_err(|error| changed(error.to_string()))?;
        let found = ticket.digest();
        if found != content {
            let reason = format!("its digest is {found}, expected {content}");
            return Err(changed(reason));
        }
        let cached = self.memory.keep(ticket, room);
        // If it was replaced or deleted while it was read, no alias refers to it any more.
        self.forget(generation);
        Ok(cached)
    }

    /// Drops a generation's content from the cache, unless an alias still names it.
    fn forget(&self, generation: &Generation) {
        let content = generation.digest();
        if !self.aliases.iter().any(|named| named.digest() == content) {
            self.memory.forget(content);
        }
    }
}

/// Locks a mutex and ignores poison: a panic leaves the data behind these locks consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
