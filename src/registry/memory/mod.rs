//! Tickets in memory, under a byte budget for each tier: all leased and pinned ones, and the most
//! recently used of the rest.

mod cache;
mod held;
mod line;
mod room;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::error::Tier;
use super::lock;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};
use cache::Cache;
use held::CachedTicket;
use room::Used;

pub(super) use held::Held;
pub(super) use line::Line;
pub(super) use room::Room;

/// What the memory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Bytes of the loaded tickets.
    pub used: TicketBytes,
    /// Bytes that they may take.
    pub budget: TicketBytes,
    /// Tickets in memory.
    pub resident: usize,
    /// Those that a request or the weights use.
    pub leased: usize,
    /// Contents that stay in memory.
    pub pinned: usize,
    /// Requests that wait for a ticket to be loaded.
    pub waiting: usize,
}

/// Where a ticket is, and who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    /// The fastest tier that holds it.
    pub tier: Tier,
    /// Leases of its content, under any alias.
    pub leases: usize,
    /// Whether it stays in memory.
    pub pinned: bool,
}

/// The outcome of a turn in line: the ticket, if it is in memory by now, or room to load it.
#[derive(Debug)]
pub(super) enum Admitted {
    Held(Held),
    Room(Room),
}

/// The budgets, the cache that they bound, and the line of those who wait for room.
#[derive(Debug)]
pub(super) struct Memory {
    budget: TicketBytes,
    used: Arc<Used>,
    cache: Mutex<Cache>,
    line: Line,
}

impl Memory {
    /// An empty memory of `budget` bytes.
    pub fn new(budget: TicketBytes) -> Self {
        Self {
            budget,
            used: Arc::default(),
            cache: Mutex::new(Cache::new()),
            line: Line::default(),
        }
    }

    /// Size of the budget.
    pub fn budget(&self) -> TicketBytes {
        self.budget
    }

    /// The requests whose ticket is not in memory.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// What the tickets in memory take now, and how many requests wait for it.
    pub fn usage(&self) -> MemoryUsage {
        let cache = lock(&self.cache);
        let resident = self.used.tickets();
        MemoryUsage {
            used: self.used.bytes(),
            budget: self.budget,
            resident,
            leased: resident.saturating_sub(cache.idle()),
            pinned: cache.pinned.len(),
            waiting: self.line.waiting(),
        }
    }

    /// Where a content is now, and how many leases it has.
    pub fn residency(&self, content: Digest) -> Residency {
        let cache = lock(&self.cache);
        let cached = cache.peek(content);
        Residency {
            tier: match cached.map(|(cached, _)| cached.bytes().device) {
                None => Tier::Disk,
                Some(0) => Tier::Host,
                Some(_) => Tier::Device,
            },
            leases: cached.map_or(0, |(_, leases)| leases),
            pinned: cache.pinned.contains(&content),
        }
    }

    /// The ticket of that content, if it is in memory and ready: marks it as used. One that takes
    /// `needed` bytes is not ready while only the host has it.
    pub fn get(&self, content: Digest, needed: TicketBytes) -> Option<Held> {
        let cached = lock(&self.cache).get(content, needed.device);
        cached.map(Held::new)
    }

    /// Takes an idle ticket that only the host has out of the cache, to bring it to the device.
    pub fn take_from_host(
        &self,
        content: Digest,
        needed: TicketBytes,
    ) -> Option<(BoundTicket, Room)> {
        lock(&self.cache).take_from_host(content, needed.device)
    }

    /// Takes `bytes` from the budget, evicting idle tickets if necessary, the least recently used
    /// first: from the device to the host, from the host to their files. `None` if the leased and
    /// pinned tickets leave too little.
    pub fn reserve(&self, bytes: TicketBytes) -> Option<Room> {
        let mut cache = lock(&self.cache);
        loop {
            let used = self.used.bytes();
            if used.host.saturating_add(bytes.host) > self.budget.host {
                cache.evict_from_host()?;
            } else if used.device.saturating_add(bytes.device) > self.budget.device {
                cache.evict_from_device()?;
            } else {
                return Some(Room::take(&self.used, bytes));
            }
        }
    }

    /// Caches a ticket under its reserved room, and holds it. If the same content was loaded
    /// meanwhile, returns that ticket instead and releases the room.
    pub fn keep(&self, ticket: LoadedTicket, room: Room) -> Held {
        let content = ticket.digest();
        let mut cache = lock(&self.cache);
        let cached = cache.get(content, room.bytes().device).unwrap_or_else(|| {
            let cached = Arc::new(CachedTicket::new(ticket, room));
            cache.put(content, Arc::clone(&cached));
            cached
        });
        Held::new(cached)
    }

    /// Removes a content without aliases from the cache; leases keep it alive.
    pub fn forget(&self, content: Digest) {
        lock(&self.cache).remove(content);
    }

    /// Replaces the contents that are never evicted.
    pub fn set_pinned(&self, pinned: HashSet<Digest>) {
        lock(&self.cache).pinned = pinned;
        self.used.changed.notify_one();
    }

    /// Waits in line, first come first served, until the content is in memory or there is room for
    /// it. Dropping the future leaves the line.
    pub async fn admit(
        &self,
        content: Digest,
        ready: TicketBytes,
        missing: TicketBytes,
        arrived: Instant,
    ) -> Admitted {
        let first = self.line.first().await;
        loop {
            let changed = self.used.changed.notified();
            if let Some(held) = self.get(content, ready) {
                return Admitted::Held(held);
            }
            if let Some(room) = self.reserve(missing) {
                return Admitted::Room(room);
            }
            first.waits(arrived);
            changed.await;
        }
    }
}
