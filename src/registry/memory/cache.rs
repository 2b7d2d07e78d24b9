//! The cache of loaded tickets, and which of them it evicts.

use std::collections::HashSet;
use std::sync::Arc;

use lru::LruCache;

use super::held::CachedTicket;
use super::room::Room;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};

/// All tickets in memory that have an alias, and compositions of such, by content, including
/// leased ones, so that aliases of the same content share its memory. (If a content is uploaded
/// again while a lease outlives its last alias, it is loaded a second time.)
#[derive(Debug)]
pub(super) struct Cache {
    tickets: LruCache<Digest, Arc<CachedTicket>>,
    /// Contents that are never evicted.
    pub pinned: HashSet<Digest>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            tickets: LruCache::unbounded(),
            pinned: HashSet::new(),
        }
    }

    /// Number of cached tickets that nobody leases.
    pub fn idle(&self) -> usize {
        let cached = self.tickets.iter();
        cached.filter(|(_, cached)| is_idle(cached)).count()
    }

    /// The ticket of that content, and the number of its leases; does not mark it as used.
    pub fn peek(&self, content: Digest) -> Option<(&CachedTicket, usize)> {
        let cached = self.tickets.peek(&content)?;
        Some((cached, Arc::strong_count(cached) - 1))
    }

    /// The ticket of that content, if it has at least `device` bytes on the device: marks it as
    /// used.
    pub fn get(&mut self, content: Digest, device: usize) -> Option<Arc<CachedTicket>> {
        let cached = self.tickets.get(&content)?;
        (cached.bytes().device >= device).then(|| Arc::clone(cached))
    }

    /// Puts a ticket in, as the most recently used, in place of one of the same content.
    pub fn put(&mut self, content: Digest, ticket: Arc<CachedTicket>) {
        self.tickets.put(content, ticket);
    }

    /// Drops the ticket of that content, and the compositions that it is part of; leases keep them
    /// alive.
    pub fn remove(&mut self, content: Digest) {
        let composed = self.tickets.iter();
        let composed = composed.filter(|(_, cached)| cached.ticket().parts().contains(&content));
        let composed: Vec<Digest> = composed.map(|(composition, _)| *composition).collect();
        for content in composed.into_iter().chain([content]) {
            self.tickets.pop(&content);
        }
    }

    /// Whether the ticket of that content is idle, and has fewer than `device` bytes on the device.
    pub fn is_on_host(&self, content: Digest, device: usize) -> bool {
        let cached = self.tickets.peek(&content);
        cached.is_some_and(|cached| is_idle(cached) && cached.bytes().device < device)
    }

    /// Bytes of all tickets that can be evicted.
    pub fn evictable(&self) -> TicketBytes {
        let cached = self.tickets.iter();
        let idle =
            cached.filter(|(content, cached)| is_idle(cached) && !self.pinned.contains(content));
        sum(idle.map(|(_, cached)| cached.bytes()))
    }

    /// Bytes of the pinned tickets in memory, other than `content`.
    pub fn pinned_bytes(&self, content: Digest) -> TicketBytes {
        let pinned = self.pinned.iter().filter(|&&pinned| pinned != content);
        let pinned = pinned.filter_map(|pinned| self.tickets.peek(pinned));
        sum(pinned.map(|cached| cached.bytes()))
    }

    /// Takes the ticket of that content out, if it is idle and has fewer than `device` bytes on the
    /// device.
    pub fn take_from_host(
        &mut self,
        content: Digest,
        device: usize,
    ) -> Option<(BoundTicket, Room)> {
        if !self.is_on_host(content, device) {
            return None;
        }
        Arc::into_inner(self.tickets.pop(&content)?)?.into_parts()
    }

    /// Evicts the least recently used idle ticket to its file; `None` if there is none.
    pub fn evict_from_host(&mut self) -> Option<()> {
        self.take_idle(|_| true).map(drop)
    }

    /// Evicts the least recently used idle ticket that is on the device to the host; `None` if
    /// there is none.
    pub fn evict_from_device(&mut self) -> Option<()> {
        let (content, idle) = self.take_idle(|cached| cached.bytes().device > 0)?;
        if let Some((ticket, mut room)) = idle.into_parts() {
            room.leave_device();
            let demoted = CachedTicket::new(LoadedTicket::new(ticket), room);
            self.tickets.put(content, Arc::new(demoted));
            self.tickets.demote(&content);
        }
        Some(())
    }

    /// Takes out the least recently used ticket that is idle, not pinned, and `fits`.
    fn take_idle(
        &mut self,
        fits: impl Fn(&CachedTicket) -> bool,
    ) -> Option<(Digest, CachedTicket)> {
        let mut oldest_first = self.tickets.iter().rev();
        let (content, _) = oldest_first.find(|(content, cached)| {
            is_idle(cached) && !self.pinned.contains(content) && fits(cached)
        })?;
        let content = *content;
        let cached = self.tickets.pop(&content)?;
        Some((content, Arc::into_inner(cached)?))
    }
}

fn sum(bytes: impl Iterator<Item = TicketBytes>) -> TicketBytes {
    bytes.fold(TicketBytes::default(), |sum, bytes| TicketBytes {
        host: sum.host + bytes.host,
        device: sum.device + bytes.device,
    })
}

/// Whether only the cache holds the ticket. Nothing can lease it while the cache is locked.
fn is_idle(cached: &Arc<CachedTicket>) -> bool {
    Arc::strong_count(cached) == 1
}
