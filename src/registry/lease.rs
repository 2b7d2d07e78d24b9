//! Leases: the holds of requests on tickets in memory.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use super::facts::Facts;
use super::generation::{Generation, Name};
use super::memory::Held;
use super::target::{ScaledGeneration, Target};
use super::ticket_folder;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};

/// Lease of a ticket, or of a composition of tickets, by a request: it stays in memory until the
/// last clone is dropped, even if a ticket is replaced or deleted meanwhile.
#[derive(Clone)]
pub struct Lease {
    target: Counted,
    held: Held,
}

/// A leased target, counted at each of its generations.
struct Counted(Arc<Target>);

impl Counted {
    fn new(target: Arc<Target>) -> Self {
        let composed = target.ticket().is_none();
        for part in target.parts() {
            part.generation.lease_begins(composed);
        }
        Self(target)
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let composed = self.ticket().is_none();
        for part in self.parts() {
            part.generation.lease_ends(composed);
        }
    }
}

impl Deref for Counted {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.0
    }
}

impl Lease {
    pub(super) fn new(target: Arc<Target>, held: Held) -> Self {
        if let Some(generation) = target.ticket() {
            generation.is_loaded_as(held.ticket());
        }
        Self {
            target: Counted::new(target),
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
        let generation = Arc::new(Generation::new(name, path, facts, created));
        Self {
            target: Counted::new(Arc::new(Target::of_ticket(generation))),
            held: Held::unbudgeted(ticket),
        }
    }

    /// Alias of the leased ticket, or the text of a composition: `sql+terse@0.5`.
    pub fn alias(&self) -> &str {
        self.name().alias
    }

    /// Identity of the content: the digest of the leased ticket's file, or
    /// [that of a composition](crate::ticket::merge::composition_digest).
    pub fn digest(&self) -> Digest {
        self.target.content()
    }

    /// Owner and alias of the leased ticket. A composition has its text as alias, and belongs to
    /// the tenant whose ticket takes part; if all are public, it is public.
    pub fn name(&self) -> Name<'_> {
        self.target.name()
    }

    /// The leased generations: one, or those that were composed, in the order of the sum.
    pub fn parts(&self) -> &[ScaledGeneration] {
        self.target.0.parts()
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
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}
