//! Generations (immutable contents of tickets) and the leases that requests hold on them.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::memory::CachedTicket;
use super::ticket_folder;
use crate::model::LoadedTicket;
use crate::ticket::{BoundTicket, Digest, Metadata};

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

/// One immutable content of a ticket: the path of its file, and what is known about it without
/// reading the file again.
#[derive(Debug)]
pub struct Generation {
    id: GenerationId,
    alias: String,
    digest: Digest,
    metadata: Metadata,
    file_bytes: u64,
    nonzeros: usize,
    resident_bytes: usize,
    created: SystemTime,
    pub(super) path: PathBuf,
    /// Locked while the file is read, so that concurrent leases read it once.
    pub(super) loading: Mutex<()>,
}

impl Generation {
    /// Describes `ticket`, whose file is at `path`, under a new id.
    pub(super) fn new(
        alias: &str,
        path: PathBuf,
        ticket: &BoundTicket,
        resident_bytes: usize,
        created: SystemTime,
    ) -> Self {
        Self {
            id: GenerationId::next(),
            alias: alias.to_owned(),
            digest: ticket.digest(),
            metadata: ticket.metadata().clone(),
            file_bytes: ticket.file_bytes(),
            nonzeros: ticket.nonzeros(),
            resident_bytes,
            created,
            path,
            loading: Mutex::new(()),
        }
    }

    /// Unique number of this generation.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Alias that it was published under.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Metadata of the file's header.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Positions that the ticket touches.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// Upper bound of the bytes that the ticket takes in memory, with its layout.
    pub fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// Time of publication; for a file found at the start, the time of its last write.
    pub fn created(&self) -> SystemTime {
        self.created
    }
}

/// Lease of a generation by a request: the ticket stays in memory until the last clone is dropped,
/// even if it is replaced or deleted meanwhile.
#[derive(Clone)]
pub struct Lease {
    pub(super) generation: Arc<Generation>,
    pub(super) cached: Arc<CachedTicket>,
}

impl Lease {
    /// Leases a ticket that is in no registry, to run the engine on a file. No budget counts it,
    /// and it is freed with the last clone. `alias` names it in messages.
    pub fn of_file(alias: &str, path: PathBuf, ticket: BoundTicket) -> Self {
        let created = ticket_folder::modified(&path);
        let bytes = ticket.resident_bytes();
        Self {
            generation: Arc::new(Generation::new(alias, path, &ticket, bytes, created)),
            cached: Arc::new(CachedTicket::unbudgeted(ticket)),
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

    /// The ticket in memory, with its layout once that is built.
    pub fn ticket(&self) -> &Arc<LoadedTicket> {
        &self.cached.ticket
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("alias", &self.alias())
            .field("id", &self.id())
            .field("digest", &self.generation.digest)
            .finish_non_exhaustive()
    }
}
