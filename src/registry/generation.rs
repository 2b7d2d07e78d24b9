//! Generations: the immutable contents of tickets.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use serde_json::Value;

use super::error::RegistryError;
use super::facts::Facts;
use super::lock;
use crate::access::Tenant;
use crate::model::LoadedTicket;
use crate::ticket::Digest;

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
    /// Leases of this generation, alone or in a composition.
    leases: AtomicUsize,
    /// Leases of compositions of which it is a part.
    composed: AtomicUsize,
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
            composed: AtomicUsize::new(0),
            loaded: Mutex::default(),
            path,
        }
    }

    /// Leases of this generation, alone or in a composition; not of others of the same content.
    pub(super) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// Leases of compositions of which it is a part.
    pub(super) fn composed(&self) -> usize {
        self.composed.load(Ordering::Relaxed)
    }

    /// Counts a lease.
    pub(super) fn lease_begins(&self, composed: bool) {
        self.leases.fetch_add(1, Ordering::Relaxed);
        self.composed.fetch_add(composed.into(), Ordering::Relaxed);
    }

    /// Counts a lease no longer.
    pub(super) fn lease_ends(&self, composed: bool) {
        self.leases.fetch_sub(1, Ordering::Relaxed);
        self.composed.fetch_sub(composed.into(), Ordering::Relaxed);
    }

    /// Notes the ticket in memory that it is leased as.
    pub(super) fn is_loaded_as(&self, ticket: &Arc<LoadedTicket>) {
        *lock(&self.loaded) = Arc::downgrade(ticket);
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
