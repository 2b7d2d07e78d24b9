//! Tickets in memory, under a byte budget: those that are leased, and the most recently used of
//! the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::lock;
use crate::ticket::{BoundTicket, Digest};

/// A ticket in memory; its bytes return to the budget when the last holder drops it.
#[derive(Debug)]
pub(super) struct Held {
    pub ticket: Arc<BoundTicket>,
    /// `None` outside of a registry.
    _room: Option<Room>,
}

impl Held {
    /// A ticket that no budget counts.
    pub fn unbudgeted(ticket: BoundTicket) -> Self {
        Self {
            ticket: Arc::new(ticket),
            _room: None,
        }
    }
}

/// Bytes taken from the budget until dropped.
#[derive(Debug)]
pub(super) struct Room {
    usage: Arc<Usage>,
    bytes: usize,
}

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
    /// Everything in memory that has an alias, by the content. What is leased is found here too, so
    /// that aliases share one content in memory. (What is uploaded again while a lease outlives its last
    /// alias is loaded anew.)
    cache: Mutex<LruCache<Digest, Arc<Held>>>,
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

    pub fn budget(&self) -> usize {
        self.budget
    }

    /// How many tickets are in memory.
    pub fn tickets(&self) -> usize {
        self.usage.tickets.load(Ordering::Relaxed)
    }

    /// The ticket of that content, if it is in memory.
    pub fn get(&self, content: Digest) -> Option<Arc<Held>> {
        lock(&self.cache).get(&content).cloned()
    }

    /// Takes `bytes` from the budget, dropping idle tickets for it, the least recently used
    /// first. `None` when leased tickets leave too little.
    pub fn reserve(&self, bytes: usize) -> Option<Room> {
        let mut cache = lock(&self.cache);
        while self
            .usage
            .bytes
            .load(Ordering::Acquire)
            .saturating_add(bytes)
            > self.budget
        {
            // Only the cache holds it: nobody leases it, and nobody can before the lock is free.
            let mut oldest_first = cache.iter().rev();
            let idle = oldest_first.find(|(_, held)| Arc::strong_count(held) == 1)?;
            let content = *idle.0;
            cache.pop(&content);
        }
        self.usage.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.usage.tickets.fetch_add(1, Ordering::Relaxed);
        let usage = self.usage.clone();
        Some(Room { usage, bytes })
    }

    /// Keeps a ticket for which room was reserved; one that came under another alias meanwhile is taken
    /// instead.
    pub fn keep(&self, ticket: BoundTicket, room: Room) -> Arc<Held> {
        let content = ticket.digest();
        let make = || {
            Arc::new(Held {
                ticket: Arc::new(ticket),
                _room: Some(room),
            })
        };
        Arc::clone(lock(&self.cache).get_or_insert(content, make))
    }

    /// Forgets a content that no alias names any more; leases keep what they hold.
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
