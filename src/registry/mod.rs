//! What tickets are here: aliases that point at generations, leases that keep them, the byte
//! budget of those in memory, and the folder on disk.
//!
//! Reading is free of waiting: an alias is looked up in a concurrent map. Whoever changes the
//! folder holds one lock from the first change on disk until the map agrees with it.

mod generation;
mod memory;
#[cfg(test)]
mod tests;
mod ticket_folder;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use std::{fmt, io};

use dashmap::DashMap;
use tempfile::NamedTempFile;

pub use generation::{Generation, GenerationId, Lease};

use crate::ticket::{BaseManifest, BoundTicket, Ticket, TicketError, validate_name};
use memory::{Held, Memory};
use ticket_folder::Folder;

/// Says how many bytes of memory a ticket of a base takes.
#[derive(Clone)]
pub struct MemoryOf(Arc<OfTicket>);

type OfTicket = dyn Fn(&Ticket, &BaseManifest) -> usize + Send + Sync;

impl MemoryOf {
    pub fn new(of: impl Fn(&Ticket, &BaseManifest) -> usize + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }
}

impl fmt::Debug for MemoryOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryOf")
    }
}

/// How much a registry takes in.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Larger ticket files are refused.
    pub max_ticket_bytes: u64,
    /// Bytes of memory for tickets, leased and cached together.
    pub memory_budget: usize,
    /// Bytes that a ticket in memory takes of that, with all that is made of it to use it.
    pub memory_of: MemoryOf,
    /// Let in tickets made for another base whose names and shapes fit this one.
    pub allow_foreign_base: bool,
}

/// Why the registry refused.
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
    #[error("the ticket needs {needed} bytes of memory, all tickets together may take {budget}")]
    TooLargeForMemory { needed: usize, budget: usize },
    #[error(
        "no memory for ticket `{alias}` ({needed} bytes) within the budget of {budget} bytes: \
         the tickets in memory are all in use"
    )]
    MemoryFull {
        alias: String,
        needed: usize,
        budget: usize,
    },
    #[error("the file of ticket `{alias}`, {}, is not what it was: {reason}", path.display())]
    Changed {
        alias: String,
        path: PathBuf,
        reason: String,
    },
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// A registry, and the files of its folder that were refused (and left where they are).
pub struct Opened {
    pub registry: Registry,
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
    /// Held by whoever changes the folder.
    writing: Mutex<()>,
}

impl Registry {
    /// Opens a folder of tickets, made where it is missing. Every `<alias>.safetensors` is read
    /// and checked, and none is kept in memory.
    ///
    /// # Errors
    /// The folder cannot be made or read. A bad ticket is no error: see [`Opened::refused`].
    pub fn open(
        dir: &Path,
        base: Arc<BaseManifest>,
        options: RegistryOptions,
    ) -> Result<Opened, RegistryError> {
        let io_error = |action| {
            move |error| RegistryError::Io {
                action,
                path: dir.to_owned(),
                error,
            }
        };
        let folder = Folder::open(dir).map_err(io_error("open the ticket folder"))?;
        let files = folder.ticket_files();
        let files = files.map_err(io_error("list the ticket folder"))?;
        let registry = Self {
            base,
            memory: Memory::new(options.memory_budget),
            options,
            folder,
            aliases: DashMap::new(),
            writing: Mutex::new(()),
        };
        let mut refused = Vec::new();
        for path in files {
            if let Err(error) = registry.adopt(&path) {
                refused.push((path, error));
            }
        }
        Ok(Opened { registry, refused })
    }

    /// The base that all tickets here belong to.
    pub fn base(&self) -> &BaseManifest {
        &self.base
    }

    /// The generation that an alias points at now.
    pub fn get(&self, alias: &str) -> Option<Arc<Generation>> {
        self.aliases.get(alias).map(|entry| entry.value().clone())
    }

    /// The generations that have an alias, in the order of their aliases.
    pub fn list(&self) -> Vec<Arc<Generation>> {
        let aliases = self.aliases.iter();
        let mut all: Vec<_> = aliases.map(|entry| entry.value().clone()).collect();
        all.sort_by(|a, b| a.alias().cmp(b.alias()));
        all
    }

    /// How many tickets are known.
    pub fn len(&self) -> usize {
        self.aliases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.aliases.is_empty()
    }

    /// How many tickets are in memory.
    pub fn resident(&self) -> usize {
        self.memory.tickets()
    }

    /// Leases the ticket that `alias` points at, read from its file unless it is in memory. May
    /// wait for the disk.
    ///
    /// # Errors
    /// The alias is unknown, leased tickets leave too little memory, or the file was changed by
    /// someone else since it was published.
    pub fn lease(&self, alias: &str) -> Result<Lease, RegistryError> {
        let known = || {
            let generation = self.get(alias);
            generation.ok_or_else(|| RegistryError::Unknown(alias.to_owned()))
        };
        let mut generation = known()?;
        loop {
            let error = match self.load(&generation) {
                Ok(held) => {
                    return Ok(Lease { generation, held });
                }
                Err(error @ RegistryError::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            // A replacement may have come between the look-up and the read: wait until it is
            // done, and look again.
            let current = {
                let _writing = lock(&self.writing);
                known()?
            };
            if current.id() == generation.id() {
                return Err(error);
            }
            generation = current;
        }
    }

    /// A new file in the ticket folder to write an upload into, for [`Registry::publish`].
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn stage(&self) -> Result<NamedTempFile, RegistryError> {
        self.folder.stage().map_err(|error| RegistryError::Io {
            action: "write to the ticket folder",
            path: self.folder.path().to_owned(),
            error,
        })
    }

    /// Checks a staged file and makes it the ticket `alias`. When this returns, the file is on
    /// disk and every new lease is of it; running leases keep what they hold. Of many that
    /// publish one new name at once without `replace`, one wins.
    ///
    /// # Errors
    /// The name is malformed, reserved or taken; the file is not a ticket for this base; the
    /// folder cannot be written. Whatever was published before is still in force then.
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
        let path = self.folder.path_of(alias);
        let io_error = |error| RegistryError::Io {
            action: "write",
            path: path.clone(),
            error,
        };
        staged.as_file().sync_all().map_err(io_error)?;

        let _writing = lock(&self.writing);
        check_free()?;
        match self.folder.place(staged, &path, replace) {
            Ok(()) => {}
            // A file that was refused at the start, or that someone put there since.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RegistryError::Exists(alias.to_owned()));
            }
            Err(error) => return Err(io_error(error)),
        }
        let generation = self.generation(alias, &path, &ticket, SystemTime::now());
        let generation = Arc::new(generation);
        let replaced = self.aliases.insert(alias.to_owned(), generation.clone());
        if let Some(replaced) = replaced {
            self.forget(&replaced);
        }
        Ok(generation)
    }

    /// Deletes a ticket and its file; running leases keep what they hold.
    ///
    /// # Errors
    /// The alias is unknown, or the file cannot be removed (the ticket stays then).
    pub fn remove(&self, alias: &str) -> Result<Arc<Generation>, RegistryError> {
        let _writing = lock(&self.writing);
        let generation = self.get(alias);
        let generation = generation.ok_or_else(|| RegistryError::Unknown(alias.to_owned()))?;
        let removed = self.folder.remove(&generation.path);
        removed.map_err(|error| RegistryError::Io {
            action: "remove",
            path: generation.path.clone(),
            error,
        })?;
        self.aliases.remove(alias);
        self.forget(&generation);
        Ok(generation)
    }

    /// Takes up a file that lies in the folder.
    fn adopt(&self, path: &Path) -> Result<(), RegistryError> {
        let alias = ticket_folder::alias_of(path);
        self.check_name(&alias)?;
        let ticket = self.read(path)?;
        let created = ticket_folder::modified(path);
        let generation = self.generation(&alias, path, &ticket, created);
        self.aliases.insert(alias, Arc::new(generation));
        Ok(())
    }

    fn generation(
        &self,
        alias: &str,
        path: &Path,
        ticket: &BoundTicket,
        created: SystemTime,
    ) -> Generation {
        let memory = (self.options.memory_of.0)(ticket, &self.base);
        Generation::new(alias, path.to_owned(), ticket, memory, created)
    }

    fn check_name(&self, alias: &str) -> Result<(), RegistryError> {
        if alias == self.base.name {
            return Err(RegistryError::Reserved(alias.to_owned()));
        }
        validate_name(alias).map_err(RegistryError::Name)
    }

    fn read(&self, path: &Path) -> Result<BoundTicket, RegistryError> {
        let ticket = Ticket::read(path, self.options.max_ticket_bytes);
        let bound = ticket.and_then(|t| t.bind(&self.base, self.options.allow_foreign_base));
        let ticket = bound.map_err(RegistryError::Invalid)?;
        let (needed, budget) = (
            (self.options.memory_of.0)(&ticket, &self.base),
            self.memory.budget(),
        );
        if needed > budget {
            return Err(RegistryError::TooLargeForMemory { needed, budget });
        }
        Ok(ticket)
    }

    /// The generation's ticket, from memory or else from its file.
    fn load(&self, generation: &Generation) -> Result<Arc<Held>, RegistryError> {
        let content = generation.digest();
        if let Some(held) = self.memory.get(content) {
            return Ok(held);
        }
        let _loading = lock(&generation.loading);
        if let Some(held) = self.memory.get(content) {
            return Ok(held);
        }
        let needed = generation.resident_bytes();
        let room = self.memory.reserve(needed);
        let room = room.ok_or_else(|| RegistryError::MemoryFull {
            alias: generation.alias().to_owned(),
            needed,
            budget: self.memory.budget(),
        })?;
        let changed = |reason: String| RegistryError::Changed {
            alias: generation.alias().to_owned(),
            path: generation.path.clone(),
            reason,
        };
        let ticket = self.read(&generation.path);
        let ticket = ticket.map_err(|error| changed(error.to_string()))?;
        let found = ticket.digest();
        if found != content {
            let reason = format!("its digest is {found}, expected {content}");
            return Err(changed(reason));
        }
        let held = self.memory.keep(ticket, room);
        // Replaced or deleted while it was read: nobody may be able to ask for it again.
        self.forget(generation);
        Ok(held)
    }

    /// Lets go of a generation's content unless an alias still names it.
    fn forget(&self, generation: &Generation) {
        let content = generation.digest();
        if !self.aliases.iter().any(|named| named.digest() == content) {
            self.memory.forget(content);
        }
    }
}

/// Locks; a panic elsewhere leaves nothing half-done behind these locks, so poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
