//! Loaded tickets, and the leases' holds on them.

use std::sync::Arc;

use super::room::{Room, Used};
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::BoundTicket;

/// A loaded ticket; its bytes return to the budget when the last reference is dropped.
#[derive(Debug)]
pub(super) struct CachedTicket {
    ticket: Arc<LoadedTicket>,
    /// Its share of the budget; `None` outside a registry.
    room: Option<Room>,
}

impl CachedTicket {
    /// A ticket that takes this room.
    pub fn new(ticket: LoadedTicket, room: Room) -> Self {
        Self {
            ticket: Arc::new(ticket),
            room: Some(room),
        }
    }

    /// Its bytes of the budget.
    pub fn bytes(&self) -> TicketBytes {
        self.room
            .as_ref()
            .map_or_else(TicketBytes::default, Room::bytes)
    }

    /// The ticket, with its layout once that is built.
    pub fn ticket(&self) -> &Arc<LoadedTicket> {
        &self.ticket
    }

    /// The ticket without its layout, and its room; `None` if the ticket is used elsewhere.
    pub fn into_parts(self) -> Option<(BoundTicket, Room)> {
        let ticket = Arc::into_inner(self.ticket)?.into_ticket();
        Some((ticket, self.room?))
    }
}

/// A lease's hold on a ticket in memory. Dropping the last one makes the ticket idle, and tells who
/// waits for memory.
#[derive(Clone, Debug)]
pub(in crate::registry) struct Held {
    // Dropped before `wake`, which tells of it.
    cached: Arc<CachedTicket>,
    _wake: Wake,
}

/// Tells the first in line when it is dropped; `None` outside a registry.
#[derive(Clone, Debug)]
struct Wake(Option<Arc<Used>>);

impl Held {
    pub(super) fn new(cached: Arc<CachedTicket>) -> Self {
        let used = cached.room.as_ref().map(|room| Arc::clone(room.used()));
        Self {
            cached,
            _wake: Wake(used),
        }
    }

    /// A ticket outside any budget.
    pub fn unbudgeted(ticket: BoundTicket) -> Self {
        Self::new(Arc::new(CachedTicket {
            ticket: Arc::new(LoadedTicket::new(ticket)),
            room: None,
        }))
    }

    /// The ticket, with its layout once that is built.
    pub fn ticket(&self) -> &Arc<LoadedTicket> {
        &self.cached.ticket
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        if let Some(used) = &self.0 {
            used.changed.notify_one();
        }
    }
}
