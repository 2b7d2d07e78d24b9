//! Registry of the tickets that are served: aliases that point at generations, leases that keep
//! them in memory, the byte budget of the loaded ones, and the folder on disk.
//!
//! The names are behind one lock, which is held for a look-up or a change of the map, never for the
//! disk: aliases, contents and pins change together, and lists are in order. A writer holds another
//! lock from the first change on disk until the names match the disk.

mod adapter;
mod condition;
mod error;
mod facts;
mod files;
#[cfg(test)]
mod folder_tests;
mod generation;
mod lease;
mod load;
mod memory;
mod names;
mod pins;
mod publish;
mod scan;
mod selection;
mod target;
#[cfg(test)]
mod tests;
mod ticket_folder;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tempfile::NamedTempFile;

pub use adapter::FoundFile;
pub use condition::{Condition, Match};
pub use error::{RegistryError, Tier};
pub use facts::Facts;
pub use files::{RefusedFile, StoredFiles};
pub use generation::{Generation, GenerationId, Name, WithTraining};
pub use lease::Lease;
pub use memory::{MemoryUsage, Residency};
pub use names::Page;
pub use selection::{MAX_PARTS, MAX_SCALE, Part, Selection, SelectionError};
pub use target::ScaledGeneration;
pub use ticket_folder::{FileFault, FolderTrouble};
pub use watch::FolderWatch;

use crate::access::Tenant;
use crate::model::{TicketBytes, TicketMemory};
use crate::ticket::{BaseManifest, BoundTicket, Metadata, Ticket, validate_name};
use files::Files;
use load::Reader;
use memory::Memory;
use names::Names;
use ticket_folder::{Folder, index_path};

/// Limits of a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Size in bytes above which a ticket file is refused.
    pub max_ticket_bytes: u64,
    /// Bytes of the host's memory for all tickets, leased and cached.
    pub memory_budget: usize,
    /// The same of the device's own memory; no limit on the CPU, where there is none.
    pub device_budget: usize,
    /// Memory that a loaded ticket takes of this budget.
    pub ticket_memory: TicketMemory,
    /// Accept tickets made for another base if all names and shapes fit this one.
    pub allow_foreign_base: bool,
    /// Requests that wait for a ticket to be loaded; further ones are refused. An account holds at
    /// most four times the places that are free.
    pub max_waiting: usize,
    /// How long a request waits for memory.
    pub memory_wait: Duration,
}

impl Default for RegistryOptions {
    /// The defaults of `tombola serve`, for tickets without layouts.
    fn default() -> Self {
        Self {
            max_ticket_bytes: 1 << 30,
            memory_budget: 2 << 30,
            device_budget: usize::MAX,
            ticket_memory: TicketMemory::without_layouts(),
            allow_foreign_base: false,
            max_waiting: 256,
            memory_wait: Duration::from_secs(300),
        }
    }
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
    /// What became of each file of the folder. Locked for moments only.
    files: Mutex<Files>,
    /// File of the folder's index.
    index: PathBuf,
    names: RwLock<Names>,
    memory: Memory,
    /// Reads the files of leased tickets.
    reader: Reader,
    /// Whether the folder is scanned for changes from outside.
    watched: AtomicBool,
    /// Locked while the folder is changed.
    writing: Mutex<()>,
}

impl Registry {
    /// Opens a folder of tickets, and creates it if it is missing. Checks every
    /// `<alias>.safetensors`, reads those that the folder's index does not know, and keeps none in
    /// memory. If the folder is read-only, its index is in `cache`.
    ///
    /// # Errors
    /// Another server uses the folder, or it can be neither created nor read. A bad ticket is no
    /// error: see [`Opened::refused`].
    pub fn open(
        dir: &Path,
        cache: Option<&Path>,
        base: Arc<BaseManifest>,
        options: RegistryOptions,
    ) -> Result<Opened, RegistryError> {
        let folder = Folder::open(dir)?;
        let listing = folder.list()?;
        let registry = Self {
            index: index_path(dir, cache.filter(|_| folder.is_read_only())),
            base,
            memory: Memory::new(TicketBytes {
                host: options.memory_budget,
                device: options.device_budget,
            }),
            reader: Ticket::read,
            options,
            folder,
            files: Mutex::default(),
            names: RwLock::default(),
            watched: AtomicBool::new(false),
            writing: Mutex::new(()),
        };
        let refused = registry.adopt_all(listing);
        Ok(Opened { registry, refused })
    }

    /// Manifest of the base that all tickets here are bound to.
    pub fn base(&self) -> &BaseManifest {
        &self.base
    }

    /// Generation that a caller of this tenant means by `alias`, `alias@digest` (at least 6 digits
    /// of the digest) or a digest. The caller's own tickets go before the public ones.
    pub fn get(&self, tenant: Option<&Tenant>, reference: &str) -> Option<Arc<Generation>> {
        self.names().resolve(tenant, reference).cloned()
    }

    /// A page of an owner's generations; `None` is the public.
    pub fn owned(&self, owner: Option<&Tenant>, page: Page<'_>) -> Vec<Arc<Generation>> {
        self.names().owned_page(owner, page)
    }

    /// A page of the generations that a caller of this tenant can name by alias: its own and the
    /// public ones, unless its own hide them.
    pub fn visible(&self, tenant: Option<&Tenant>, page: Page<'_>) -> Vec<Arc<Generation>> {
        self.names().visible_page(tenant, page)
    }

    /// Number of aliases, of all owners.
    pub fn len(&self) -> usize {
        self.names().len()
    }

    /// Whether there are no aliases.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tickets in memory.
    pub fn resident(&self) -> usize {
        self.usage().resident
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

    /// Points the generation's alias at it.
    fn point_at(&self, generation: Arc<Generation>) {
        let replaced = self.names_mut().insert(generation);
        self.refresh_pins();
        if let Some(replaced) = replaced {
            self.forget(&replaced);
        }
    }

    /// The ticket of that name, which its owner may change.
    fn changeable(&self, name: Name<'_>) -> Result<Arc<Generation>, RegistryError> {
        let names = self.names();
        if let Some(found) = names.owned(name.owner, name.alias) {
            return Ok(Arc::clone(found));
        }
        let alias = name.alias.to_owned();
        Err(match names.owned(None, name.alias) {
            Some(_) => RegistryError::Public(alias),
            None => RegistryError::Unknown(alias),
        })
    }

    /// The generation that a reference means, or the error that names it.
    fn known(
        &self,
        tenant: Option<&Tenant>,
        reference: &str,
    ) -> Result<Arc<Generation>, RegistryError> {
        self.get(tenant, reference)
            .ok_or_else(|| RegistryError::Unknown(reference.to_owned()))
    }

    /// What stays known of a checked ticket.
    fn facts(&self, ticket: &BoundTicket) -> Facts {
        let memory = self.options.ticket_memory.bytes_of(ticket, &self.base);
        Facts::new(ticket, memory)
    }

    /// The ticket that a caller of this tenant means by `reference`, as [`Registry::get`], with the
    /// provenance that its file states. Blocks on the disk.
    ///
    /// # Errors
    /// There is no such ticket; its file was changed or removed outside the server.
    pub fn get_with_training(
        &self,
        tenant: Option<&Tenant>,
        reference: &str,
    ) -> Result<WithTraining, RegistryError> {
        // While it is locked, the names match the files.
        let _writing = lock(&self.writing);
        let generation = self.known(tenant, reference)?;
        let metadata = Metadata::read(&generation.path);
        let metadata = metadata.map_err(|error| generation.changed(error.to_string()))?;
        Ok(WithTraining {
            generation,
            training: metadata.training,
        })
    }

    fn check_name(&self, alias: &str) -> Result<(), RegistryError> {
        if alias.eq_ignore_ascii_case(&self.base.name) {
            return Err(RegistryError::Reserved(alias.to_owned()));
        }
        if names::reads_as_digest(alias) {
            return Err(RegistryError::ReadsAsDigest(alias.to_owned()));
        }
        validate_name(alias).map_err(RegistryError::Name)
    }

    /// Reads a file, binds it to the base and checks that the budget can hold it.
    fn read(&self, path: &Path) -> Result<BoundTicket, RegistryError> {
        let ticket = Ticket::read(path, self.options.max_ticket_bytes)
            .and_then(|ticket| ticket.bind(&self.base, self.options.allow_foreign_base))
            .map_err(RegistryError::Invalid)?;
        self.check_memory(self.facts(&ticket).memory)?;
        Ok(ticket)
    }

    /// Checks that the budget can hold a ticket of that size.
    fn check_memory(&self, needed: TicketBytes) -> Result<(), RegistryError> {
        let budget = self.memory.budget();
        for (tier, needed, available) in [
            (Tier::Host, needed.host, budget.host),
            (Tier::Device, needed.device, budget.device),
        ] {
            if needed > available {
                return Err(RegistryError::TooLargeForMemory {
                    tier,
                    needed,
                    available,
                });
            }
        }
        Ok(())
    }

    /// Drops a generation's content and its compositions from the cache, unless an alias still
    /// names the content.
    fn forget(&self, generation: &Generation) {
        let content = generation.digest();
        if !self.names().has_content(content) {
            self.memory.forget(content);
        }
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_mut(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a mutex and ignores poison: a panic leaves the data behind these locks consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
