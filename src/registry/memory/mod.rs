//! Tickets in memory, under a byte budget for each tier: all leased and pinned ones, and the most
//! recently used of the rest.

mod cache;
mod held;
mod line;
mod room;
mod turns;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::error::Tier;
use super::lock;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};
use cache::Cache;
use held::CachedTicket;
use line::Line;
use room::Used;

pub(super) use held::Held;
pub(super) use line::{Account, Admitted, Load, Wanted};
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

/// The budgets, the cache that they bound, and the line of those who wait for room.
#[derive(Debug)]
pub(super) struct Memory {
    budget: TicketBytes,
    used: Arc<Used>,
    cache: Mutex<Cache>,
    line: Arc<Line>,
}

impl Memory {
    /// An empty memory of `budget` bytes.
    pub fn new(budget: TicketBytes) -> Self {
        let used: Arc<Used> = Arc::default();
        Self {
            budget,
            line: Arc::new(Line::new(Arc::clone(&used))),
            used,
            cache: Mutex::new(Cache::new()),
        }
    }

    /// Size of the budget.
    pub fn budget(&self) -> TicketBytes {
        self.budget
    }

    /// What the tickets in memory take now, and how many requests wait for it.
    pub fn usage(&self) -> MemoryUsage {
        let waiting = self.line.places();
        let cache = lock(&self.cache);
        let resident = self.used.tickets();
        MemoryUsage {
            used: self.used.bytes(),
            budget: self.budget,
            resident,
            leased: resident.saturating_sub(cache.idle()),
            pinned: cache.pinned.len(),
            waiting,
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

    /// Room for what a ticket misses to be ready, and the idle ticket itself if only the host has
    /// it. `None` if the leased and pinned tickets leave too little; nothing is evicted then.
    pub fn room_for(&self, wanted: &Wanted) -> Option<(Room, Option<(BoundTicket, Room)>)> {
        let Wanted { content, bytes, .. } = *wanted;
        let mut cache = lock(&self.cache);
        if cache.is_on_host(content, bytes.device) {
            // Room on the device alone evicts nothing from the host.
            let missing = TicketBytes { host: 0, ..bytes };
            let room = self.reserve_in(&mut cache, missing)?;
            if let Some(on_host) = cache.take_from_host(content, bytes.device) {
                return Some((room, Some(on_host)));
            }
        }
        Some((self.reserve_in(&mut cache, bytes)?, None))
    }

    /// Takes `bytes` from the budget, evicting idle tickets if necessary, the least recently used
    /// first: from the device to the host, from the host to their files. `None` if the leased and
    /// pinned tickets leave too little; nothing is evicted then.
    fn reserve_in(&self, cache: &mut Cache, bytes: TicketBytes) -> Option<Room> {
        let (used, evictable) = (self.used.bytes(), cache.evictable());
        let fits = |used: usize, evictable: usize, bytes: usize, budget: usize| {
            used.saturating_sub(evictable).saturating_add(bytes) <= budget
        };
        if !fits(used.host, evictable.host, bytes.host, self.budget.host)
            || !fits(
                used.device,
                evictable.device,
                bytes.device,
                self.budget.device,
            )
        {
            return None;
        }
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

    /// Removes a content without aliases, and its compositions, from the cache; leases keep them
    /// alive.
    pub fn forget(&self, content: Digest) {
        lock(&self.cache).remove(content);
    }

    /// Replaces the contents that are never evicted.
    pub fn set_pinned(&self, pinned: HashSet<Digest>) {
        lock(&self.cache).pinned = pinned;
        self.used.changed.notify_one();
    }
}
