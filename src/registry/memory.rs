//! Tickets in memory, under a byte budget for each tier: all leased and pinned ones, and the most
//! recently used of the rest.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::error::Tier;
use super::lock;
use crate::model::{LoadedTicket, TicketBytes};
use crate::ticket::{BoundTicket, Digest};

/// How long the first in line for memory lets later requests join tickets that are in memory
/// already. After that they queue behind it, so that a busy ticket does not keep others out.
const PATIENCE: Duration = Duration::from_secs(1);

/// A loaded ticket; its bytes return to the budget when the last reference is dropped.
#[derive(Debug)]
pub(super) struct CachedTicket {
    ticket: Arc<LoadedTicket>,
    /// Its share of the budget; `None` outside a registry.
    room: Option<Room>,
}

/// A lease's hold on a ticket in memory. Dropping the last one makes the ticket idle, and tells who
/// waits for memory.
#[derive(Clone, Debug)]
pub(super) struct Held {
    // Dropped before `wake`, which tells of it.
    cached: Arc<CachedTicket>,
    _wake: Wake,
}

/// Tells the first in line when it is dropped; `None` outside a registry.
#[derive(Clone, Debug)]
struct Wake(Option<Arc<Used>>);

/// Reserved bytes of the budget, released on drop.
#[derive(Debug)]
pub(super) struct Room {
    used: Arc<Used>,
    bytes: TicketBytes,
}

/// Used part of the budget.
#[derive(Debug, Default)]
struct Used {
    host: AtomicUsize,
    device: AtomicUsize,
    tickets: AtomicUsize,
    /// Wakes the first in line: bytes were released, or a ticket became idle.
    changed: Notify,
}

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
    /// The line: its lock is handed over in order of arrival.
    turn: AsyncMutex<()>,
    /// Since when the first in line waits.
    first_since: Mutex<Option<Instant>>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Cache {
    /// All tickets in memory that have an alias, by content, including leased ones, so that aliases
    /// of the same content share its memory. (If a content is uploaded again while a lease outlives
    /// its last alias, it is loaded a second time.)
    tickets: LruCache<Digest, Arc<CachedTicket>>,
    pinned: HashSet<Digest>,
}

impl CachedTicket {
    fn bytes(&self) -> TicketBytes {
        self.room
            .as_ref()
            .map_or_else(TicketBytes::default, |room| room.bytes)
    }
}

impl Held {
    fn new(cached: Arc<CachedTicket>) -> Self {
        let used = cached.room.as_ref().map(|room| Arc::clone(&room.used));
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

impl Memory {
    /// An empty memory of `budget` bytes.
    pub fn new(budget: TicketBytes) -> Self {
        Self {
            budget,
            used: Arc::default(),
            cache: Mutex::new(Cache {
                tickets: LruCache::unbounded(),
                pinned: HashSet::new(),
            }),
            turn: AsyncMutex::new(()),
            first_since: Mutex::new(None),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Size of the budget.
    pub fn budget(&self) -> TicketBytes {
        self.budget
    }

    /// What the tickets in memory take now, and how many requests wait for it.
    pub fn usage(&self) -> MemoryUsage {
        let cache = lock(&self.cache);
        let cached = cache.tickets.iter();
        let idle = cached.filter(|(_, cached)| Arc::strong_count(cached) == 1);
        let idle = idle.count();
        let resident = self.used.tickets.load(Ordering::Relaxed);
        MemoryUsage {
            used: self.used.bytes(),
            budget: self.budget,
            resident,
            leased: resident.saturating_sub(idle),
            pinned: cache.pinned.len(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// Where a content is now, and how many leases it has.
    pub fn residency(&self, content: Digest) -> Residency {
        let cache = lock(&self.cache);
        let cached = cache.tickets.peek(&content);
        Residency {
            tier: match cached.map(|cached| cached.bytes().device) {
                None => Tier::Disk,
                Some(0) => Tier::Host,
                Some(_) => Tier::Device,
            },
            leases: cached.map_or(0, |cached| Arc::strong_count(cached) - 1),
            pinned: cache.pinned.contains(&content),
        }
    }

    /// The ticket of that content, if it is in memory and ready: marks it as used. One that takes
    /// `needed` bytes is not ready while only the host has it.
    pub fn get(&self, content: Digest, needed: TicketBytes) -> Option<Held> {
        let mut cache = lock(&self.cache);
        let cached = cache.tickets.get(&content)?;
        let ready = cached.bytes().device >= needed.device;
        ready.then(|| Held::new(Arc::clone(cached)))
    }

    /// Takes an idle ticket that only the host has out of the cache, to bring it to the device.
    pub fn take_from_host(
        &self,
        content: Digest,
        needed: TicketBytes,
    ) -> Option<(BoundTicket, Room)> {
        let mut cache = lock(&self.cache);
        let cached = cache.tickets.peek(&content)?;
        if cached.bytes().device >= needed.device || Arc::strong_count(cached) > 1 {
            return None;
        }
        Arc::into_inner(cache.tickets.pop(&content)?)?.into_parts()
    }

    /// Takes `bytes` from the budget, evicting idle tickets if necessary, the least recently used
    /// first: from the device to the host, from the host to their files. `None` if the leased and
    /// pinned tickets leave too little.
    pub fn reserve(&self, bytes: TicketBytes) -> Option<Room> {
        let mut cache = lock(&self.cache);
        loop {
            let used = self.used.bytes();
            if used.host.saturating_add(bytes.host) > self.budget.host {
                drop(cache.take_idle(|_| true)?);
            } else if used.device.saturating_add(bytes.device) > self.budget.device {
                let (content, idle) = cache.take_idle(|cached| cached.bytes().device > 0)?;
                if let Some((ticket, mut room)) = idle.into_parts() {
                    room.leave_device();
                    let demoted = CachedTicket::new(LoadedTicket::new(ticket), room);
                    cache.tickets.put(content, Arc::new(demoted));
                    cache.tickets.demote(&content);
                }
            } else {
                break;
            }
        }
        self.used.add(bytes);
        self.used.tickets.fetch_add(1, Ordering::Relaxed);
        let used = Arc::clone(&self.used);
        Some(Room { used, bytes })
    }

    /// Caches a ticket under its reserved room, and holds it. If the same content was loaded
    /// meanwhile, returns that ticket instead and releases the room.
    pub fn keep(&self, ticket: LoadedTicket, room: Room) -> Held {
        let content = ticket.digest();
        let mut cache = lock(&self.cache);
        let cached = match cache.tickets.get(&content) {
            Some(cached) if cached.bytes().device >= room.bytes.device => Arc::clone(cached),
            _ => {
                let cached = Arc::new(CachedTicket::new(ticket, room));
                cache.tickets.put(content, Arc::clone(&cached));
                cached
            }
        };
        Held::new(cached)
    }

    /// Removes a content without aliases from the cache; leases keep it alive.
    pub fn forget(&self, content: Digest) {
        lock(&self.cache).tickets.pop(&content);
    }

    /// Replaces the contents that are never evicted.
    pub fn set_pinned(&self, pinned: HashSet<Digest>) {
        lock(&self.cache).pinned = pinned;
        self.used.changed.notify_one();
    }

    /// Whether a request that arrived then may use a ticket that is in memory: not if the first in
    /// line has waited too long already.
    pub fn may_join(&self, arrived: Instant) -> bool {
        lock(&self.first_since).is_none_or(|since| arrived <= since + PATIENCE)
    }

    /// Counts a waiting request until the guard is dropped. The error is the number of those that
    /// wait, at least `max`.
    pub fn enter_line(&self, max: usize) -> Result<Waiting<'_>, usize> {
        let waiting = Waiting(&self.waiting);
        match self.waiting.fetch_add(1, Ordering::Relaxed) {
            before if before >= max => Err(before),
            _ => Ok(waiting),
        }
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
        let _turn = self.turn.lock().await;
        let _first = First(&self.first_since);
        loop {
            let changed = self.used.changed.notified();
            if let Some(held) = self.get(content, ready) {
                return Admitted::Held(held);
            }
            if let Some(room) = self.reserve(missing) {
                return Admitted::Room(room);
            }
            lock(&self.first_since).get_or_insert(arrived);
            changed.await;
        }
    }
}

/// A waiting request, counted.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first in line; clears since when it waits.
struct First<'a>(&'a Mutex<Option<Instant>>);

impl Drop for First<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

impl Cache {
    /// Takes out the least recently used ticket that is idle, not pinned, and `fits`. Idle: only
    /// the cache holds it, and nothing can lease it while the cache is locked.
    fn take_idle(
        &mut self,
        fits: impl Fn(&CachedTicket) -> bool,
    ) -> Option<(Digest, CachedTicket)> {
        let mut oldest_first = self.tickets.iter().rev();
        let (content, _) = oldest_first.find(|(content, cached)| {
            Arc::strong_count(cached) == 1 && !self.pinned.contains(content) && fits(cached)
        })?;
        let content = *content;
        let cached = self.tickets.pop(&content)?;
        Some((content, Arc::into_inner(cached)?))
    }
}

impl CachedTicket {
    fn new(ticket: LoadedTicket, room: Room) -> Self {
        Self {
            ticket: Arc::new(ticket),
            room: Some(room),
        }
    }

    /// The ticket without its layout, and its room; `None` if the ticket is used elsewhere.
    fn into_parts(self) -> Option<(BoundTicket, Room)> {
        let ticket = Arc::into_inner(self.ticket)?.into_ticket();
        Some((ticket, self.room?))
    }
}

impl Room {
    /// Adds the bytes of another room of the same ticket.
    pub fn join(mut self, mut other: Self) -> Self {
        let bytes = std::mem::take(&mut other.bytes);
        self.bytes.host += bytes.host;
        self.bytes.device += bytes.device;
        self
    }

    /// Releases the device's bytes.
    fn leave_device(&mut self) {
        let device = std::mem::take(&mut self.bytes.device);
        self.used.device.fetch_sub(device, Ordering::AcqRel);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.host.fetch_sub(self.bytes.host, Ordering::AcqRel);
        self.used
            .device
            .fetch_sub(self.bytes.device, Ordering::AcqRel);
        self.used.tickets.fetch_sub(1, Ordering::Relaxed);
        self.used.changed.notify_one();
    }
}

impl Used {
    fn bytes(&self) -> TicketBytes {
        TicketBytes {
            host: self.host.load(Ordering::Acquire),
            device: self.device.load(Ordering::Acquire),
        }
    }

    fn add(&self, bytes: TicketBytes) {
        self.host.fetch_add(bytes.host, Ordering::AcqRel);
        self.device.fetch_add(bytes.device, Ordering::AcqRel);
    }
}
