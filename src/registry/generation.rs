//! Generations (immutable contents of tickets) and the leases that requests hold on them.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use serde_json::Value;

use super::error::RegistryError;
use super::facts::Facts;
use super::memory::Held;
use super::{lock, ticket_folder};
use crate::access::Tenant;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};

/// Name of a ticket: whose, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The tenant that the ticket belongs to; `None` if it is public.
    pub owner: Option<&'a Tenant>,
    /// Its alias.
    pub alias: &'a str,
}

impl<'a> Name<'a> {
    /// A tenant's ticket, or a public one.
    pub fn new(owner: Option<&'a Tenant>, alias: &'a str) -> Self {
        Self { owner, alias }
    }

    /// Name of the owner as metrics label it: empty if the ticket is public.
    pub fn owner_label(&self) -> &'a str {
        self.owner.map_or("", Tenant::as_str)
    }

    /// A public ticket.
    pub fn public(alias: &'a str) -> Self {
        Self::new(None, alias)
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            Some(owner) => write!(f, "{owner}/{}", self.alias),
            None => f.write_str(self.alias),
        }
    }
}

/// Process-wide unique number of a generation. No two generations share an id, even if their
/// aliases or bytes are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(pub u64);

impl GenerationId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One immutable content of a ticket: whose it is, the path of its file, and what is known about it
/// without reading the file again.
#[derive(Debug)]
pub struct Generation {
    id: GenerationId,
    owner: Option<Tenant>,
    alias: String,
    facts: Facts,
    created: SystemTime,
    /// Leases of this generation.
    leases: AtomicUsize,
    /// The ticket that it was last leased as.
    loaded: Mutex<Weak<LoadedTicket>>,
    pub(super) path: PathBuf,
}

impl Generation {
    /// A generation of these facts, whose file is at `path`, under a new id.
    pub(super) fn new(name: Name<'_>, path: PathBuf, facts: Facts, created: SystemTime) -> Self {
        Self {
            id: GenerationId::next(),
            owner: name.owner.cloned(),
            alias: name.alias.to_owned(),
            facts,
            created,
            leases: AtomicUsize::new(0),
            loaded: Mutex::default(),
            path,
        }
    }

    /// Leases of this generation, not of others of the same content.
    pub(super) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// Whether the ticket that it was last leased as is still in memory.
    pub(super) fn is_loaded(&self) -> bool {
        lock(&self.loaded).strong_count() > 0
    }

    /// Unique number of this generation.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Tenant that the ticket belongs to; `None` if it is public.
    pub fn owner(&self) -> Option<&Tenant> {
        self.owner.as_ref()
    }

    /// Alias that it was published under.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// Owner and alias.
    pub fn name(&self) -> Name<'_> {
        Name {
            owner: self.owner(),
            alias: &self.alias,
        }
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> Digest {
        self.facts.digest
    }

    /// What is known about the file.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Positions that the ticket touches.
    pub fn nonzeros(&self) -> usize {
        self.facts.nonzeros
    }

    /// Upper bound of the bytes that the ticket takes in memory, on host and device, with its
    /// layout.
    pub fn resident_bytes(&self) -> usize {
        self.facts.memory.total()
    }

    /// The error that its file is not what was published.
    pub(super) fn changed(&self, reason: String) -> RegistryError {
        RegistryError::Changed {
            alias: self.alias.clone(),
            path: self.path.clone(),
            reason,
        }
    }

    /// Time of publication; for a file found at the start, the time of its last write.
    pub fn created(&self) -> SystemTime {
        self.created
    }
}

/// A generation, with the provenance that its file states.
#[derive(Clone, Debug)]
pub struct WithTraining {
    /// The generation.
    pub generation: Arc<Generation>,
    /// `training` of its metadata.
    pub training: Option<Value>,
}

/// Lease of a generation by a request: the ticket stays in memory until the last clone is dropped,
/// even if it is replaced or deleted meanwhile.
#[derive(Clone)]
pub struct Lease {
    generation: Counted,
    held: Held,
}

/// A leased generation, which counts its leases.
struct Counted(Arc<Generation>);

impl Counted {
    fn new(generation: Arc<Generation>) -> Self {
        generation.leases.fetch_add(1, Ordering::Relaxed);
        Self(generation)
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Counted {
    type Target = Generation;

    fn deref(&self) -> &Generation {
        &self.0
    }
}

impl Lease {
    pub(super) fn new(generation: Arc<Generation>, held: Held) -> Self {
        *lock(&generation.loaded) = Arc::downgrade(held.ticket());
        Self {
            generation: Counted::new(generation),
            held,
        }
    }

    /// Leases a ticket that is in no registry, to run the engine on a file. No budget counts it,
    /// and it is freed with the last clone. `alias` names it in messages.
    pub fn of_file(alias: &str, path: PathBuf, ticket: BoundTicket) -> Self {
        let created = ticket_folder::modified(&path);
        let memory = TicketBytes {
            host: ticket.resident_bytes(),
            device: 0,
        };
        let (name, facts) = (Name::public(alias), Facts::new(&ticket, memory));
        Self {
            generation: Counted::new(Arc::new(Generation::new(name, path, facts, created))),
            held: Held::unbudgeted(ticket),
        }
    }

    /// Unique number of the leased generation.
    pub fn id(&self) -> GenerationId {
        self.generation.id
    }

    /// Alias of the leased generation.
    pub fn alias(&self) -> &str {
        &self.generation.alias
    }

    /// SHA-256 of the leased generation's file.
    pub fn digest(&self) -> Digest {
        self.generation.digest()
    }

    /// Owner and alias of the leased generation.
    pub fn name(&self) -> Name<'_> {
        self.generation.name()
    }

    /// The ticket in memory, with its layout once that is built.
    pub fn ticket(&self) -> &Arc<LoadedTicket> {
        self.held.ticket()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("alias", &self.alias())
            .field("id", &self.id())
            .field("digest", &self.generation.digest())
            .finish_non_exhaustive()
    }
}
