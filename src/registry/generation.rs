//! One immutable content of a ticket, and a request's hold on it.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::memory::Held;
use super::ticket_folder;
use crate::ticket::{BoundTicket, Digest, Metadata};

/// Names one content for the life of the process: two generations never share an id, whatever
/// their aliases and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(pub u64);

impl GenerationId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One immutable content of a ticket: where its file is and what is known of it without reading
/// the file again.
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
    /// Held while the file is read, so that it is read once however many ask for it.
    pub(super) loading: Mutex<()>,
}

impl Generation {
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

    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// The name that it was published under.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Positions that the ticket holds.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// Bytes of memory that the ticket takes while it is leased or cached, at most: with all that is
    /// made of it.
    pub fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// When it was published here; for a file found at the start, when it was last written.
    pub fn created(&self) -> SystemTime {
        self.created
    }
}

/// A request's hold on a generation: its ticket stays in memory until the last clone is dropped,
/// also when it is replaced or deleted meanwhile.
#[derive(Clone)]
pub struct Lease {
    pub(super) generation: Arc<Generation>,
    pub(super) held: Arc<Held>,
}

impl Lease {
    /// A lease of a ticket that is in no registry, for whoever runs the engine on a file: it goes
    /// when the last clone is dropped. `alias` names it in messages.
    pub fn of_file(alias: &str, path: PathBuf, ticket: BoundTicket) -> Self {
        let created = ticket_folder::modified(&path);
        let bytes = ticket.resident_bytes();
        Self {
            generation: Arc::new(Generation::new(alias, path, &ticket, bytes, created)),
            held: Arc::new(Held::unbudgeted(ticket)),
        }
    }

    pub fn id(&self) -> GenerationId {
        self.generation.id
    }

    /// The name that the ticket was leased by.
    pub fn alias(&self) -> &str {
        &self.generation.alias
    }

    pub fn ticket(&self) -> &Arc<BoundTicket> {
        &self.held.ticket
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
