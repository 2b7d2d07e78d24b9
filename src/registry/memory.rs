//! Tickets in memory, under a byte budget: all leased ones, and the most recently used of the rest.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::lock;
use crate::model::LoadedTicket;
use crate::ticket::{BoundTicket, Digest};

/// A loaded ticket; its bytes return to the budget when the last reference is dropped.
#[derive(Debug)]
pub(super) struct CachedTicket {
    pub ticket: Arc<LoadedTicket>,
    /// Its share of the budget; `None` outside a registry.
    _room: Option<Room>,
}

impl CachedTicket {
    /// A ticket outside any budget.
    pub fn unbudgeted(ticket: BoundTicket) -> Self {
        Self::new(ticket, None)
    }

    fn new(ticket: BoundTicket, room: Option<Room>) -> Self {
        Self {
            ticket: Arc::new(LoadedTicket::new(ticket)),
            _room: room,
        }
    }
}

/// Reserved bytes of the budget, released on drop.
#[derive(Debug)]
pub(super) struct Room {
    usage: Arc<Usage>,
    bytes: usize,
}

/// Used part of the budget.
#[derive(Debug, Default)]
struct Usage {
    bytes: AtomicUsize,
    tickets: AtomicUsize,
}

/// The budget and the cache that it bounds.
#[derive(Debug)]
pub(super) struct Memory {
    budget: usize,
    usage: Arc<Usage>,
    /// All tickets in memory that have an alias, by content, including leased ones, so that aliases
    /// of the same content share its memory. (If a content is uploaded again while a lease outlives
    /// its last alias, it is loaded a second time.)
    cache: Mutex<LruCache<Digest, Arc<CachedTicket>>>,
}

impl Memory {
    /// An empty memory of `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            usage: Arc::default(),
            cache: Mutex::new(LruCache::unbounded()),
        }
    }

    /// Size of the budget in bytes.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Number of tickets in memory.
    pub fn tickets(&self) -> usize {
        self.usage.tickets.load(Ordering::Relaxed)
    }

    /// The ticket of that content, if it is cached; marks it as used.
    pub fn get(&self, content: Digest) -> Option<Arc<CachedTicket>> {
        lock(&self.cache).get(&content).cloned()
    }

    /// Takes `bytes` from the budget, evicting idle tickets if necessary, the least recently used
    /// first. `None` if the leased tickets leave too little.
    pub fn reserve(&self, bytes: usize) -> Option<Room> {
        let mut cache = lock(&self.cache);
        while self
            .usage
            .bytes
            .load(Ordering::Acquire)
            .saturating_add(bytes)
            > self.budget
        {
            // Idle: only the cache holds it, and nothing can lease it before the lock is free.
            let mut oldest_first = cache.iter().rev();
            let idle = oldest_first.find(|(_, cached)| Arc::strong_count(cached) == 1)?;
            let content = *idle.0;
            cache.pop(&content);
        }
        self.usage.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.usage.tickets.fetch_add(1, Ordering::Relaxed);
        let usage = self.usage.clone();
        Some(Room { usage, bytes })
    }

    /// Caches a ticket under its reserved room. If another alias has loaded the same content
    /// meanwhile, returns that ticket instead and releases the room.
    pub fn keep(&self, ticket: BoundTicket, room: Room) -> Arc<CachedTicket> {
        let content = ticket.digest();
        let cached = || Arc::new(CachedTicket::new(ticket, Some(room)));
        Arc::clone(lock(&self.cache).get_or_insert(content, cached))
    }

    /// Removes a content without aliases from the cache; leases keep it alive.
    pub fn forget(&self, content: Digest) {
        lock(&self.cache).pop(&content);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.usage.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.usage.tickets.fetch_sub(1, Ordering::Relaxed);
    }
}
