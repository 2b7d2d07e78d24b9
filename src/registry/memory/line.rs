//! The line of requests whose ticket is not in memory: bounded, shared by accounts, in turn.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::held::Held;
use super::room::{Room, Used};
use crate::access::{Tenant, within_share};
use crate::model::TicketBytes;
use crate::registry::{RegistryError, lock};
use crate::ticket::{BoundTicket, Digest};

/// Bounds of the advised pause before a retry, in seconds.
const RETRY_SECONDS: (u64, u64) = (1, 60);

/// Party that a request is counted for: its tenant, or else its ticket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) enum Account {
    Tenant(Tenant),
    Ticket(Digest),
}

impl Account {
    /// Account of a request by a caller of this tenant.
    pub fn of(tenant: Option<&Tenant>, content: Digest) -> Self {
        match tenant {
            Some(tenant) => Self::Tenant(tenant.clone()),
            None => Self::Ticket(content),
        }
    }
}

/// What a request asks of the memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::registry) struct Wanted {
    pub content: Digest,
    /// Bytes of the ticket once it is ready.
    pub bytes: TicketBytes,
    pub arrived: Instant,
}

/// The outcome of a turn: the ticket, if it is in memory by now, or what to load it with.
#[derive(Debug)]
pub(in crate::registry) enum Admitted {
    Held(Held),
    Load(Box<Load>),
}

/// Permission to bring a content into memory.
#[derive(Debug)]
pub(in crate::registry) struct Load {
    /// The ticket with its room, if the host has it and the device not.
    pub on_host: Option<(BoundTicket, Room)>,
    /// Room for what is missing.
    pub room: Room,
    /// Held until the ticket is in memory, even if the request is gone by then.
    pub loading: Loading,
}

/// The line. Its lock is taken before the cache's.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<Queue>,
    used: Arc<Used>,
}

/// Everyone in the line, and the contents that are being loaded.
#[derive(Debug, Default)]
pub(super) struct Queue {
    accounts: HashMap<Account, Turns>,
    /// Places of all accounts.
    taken: usize,
    /// Requests that nothing was granted yet, in order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    /// Number of the next request, or of the next turn.
    next: u64,
    /// Contents that a thread is loading.
    loading: HashSet<Digest>,
    /// The first in turn for which there is no room.
    pub blocked: Option<Blocked>,
}

/// What an account has in the line.
#[derive(Debug, Default)]
struct Turns {
    places: usize,
    /// Lower goes first: when the account entered the line, or was granted something last.
    turn: u64,
}

#[derive(Debug)]
struct Waiter {
    account: Account,
    wanted: Wanted,
    grant: oneshot::Sender<Admitted>,
}

/// The request that waits for room, and the tickets that others leased past it.
#[derive(Debug)]
pub(super) struct Blocked {
    id: u64,
    pub wanted: Wanted,
    pub passed: HashMap<Digest, TicketBytes>,
}

/// How a request goes before the one that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It takes nothing from it, or nobody waits for room.
    Free,
    /// It takes bytes that the other must not need.
    Counted,
}

impl Line {
    /// An empty line for the memory with this use.
    pub fn new(used: Arc<Used>) -> Self {
        Self {
            state: Mutex::default(),
            used,
        }
    }

    /// Locks the line. Nothing that was granted may be dropped meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.state)
    }

    /// Number of requests that wait for room, or for a load.
    pub fn places(&self) -> usize {
        self.lock().taken
    }

    /// Puts a request at the end of its account's part of the line, of `max` places in all.
    ///
    /// # Errors
    /// All places are taken, or the account holds its share of them.
    pub fn enter(
        self: &Arc<Self>,
        account: Account,
        wanted: Wanted,
        max: usize,
    ) -> Result<(Place, oneshot::Receiver<Admitted>), RegistryError> {
        let (grant, granted) = oneshot::channel();
        let mut queue = self.lock();
        let waiting = queue.accounts.get(&account).map_or(0, |own| own.places);
        let free = max.saturating_sub(queue.taken);
        let retry_after = queue.retry_after();
        if free == 0 {
            return Err(RegistryError::LineFull {
                waiting: queue.taken,
                retry_after,
            });
        }
        if !within_share(waiting, free, 1) {
            return Err(RegistryError::LineShare {
                waiting,
                retry_after,
            });
        }
        let id = queue.number();
        queue.taken += 1;
        let own = queue.accounts.entry(account.clone()).or_default();
        own.places += 1;
        if own.places == 1 {
            own.turn = id;
        }
        let waiter = Waiter {
            account: account.clone(),
            wanted,
            grant,
        };
        queue.waiting.insert(id, waiter);
        let place = Place {
            line: Arc::clone(self),
            account,
            id,
        };
        Ok((place, granted))
    }

    /// Marks a content as being loaded, until the guard is dropped.
    pub fn loads(self: &Arc<Self>, queue: &mut Queue, content: Digest) -> Loading {
        queue.loading.insert(content);
        Loading {
            line: Arc::clone(self),
            content,
        }
    }
}

impl Queue {
    /// The waiting requests in the order of their turns: each account's first, then each one's
    /// second, and so on.
    pub fn in_turn(&self) -> Vec<(u64, Wanted)> {
        let mut before: HashMap<&Account, usize> = HashMap::new();
        let ranked = self.waiting.iter().map(|(&id, waiter)| {
            let before = before.entry(&waiter.account).or_default();
            let turn = self.accounts.get(&waiter.account).map(|own| own.turn);
            let rank = (*before, turn);
            *before += 1;
            (rank, id, waiter.wanted)
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|&(rank, id, _)| (rank, id));
        ranked.into_iter().map(|(_, id, it)| (id, it)).collect()
    }

    /// Whether a thread is loading the content.
    pub fn is_loading(&self, content: Digest) -> bool {
        self.loading.contains(&content)
    }

    /// Hands a waiting request what it waits for, which makes it its account's turn last. Returns
    /// it if the request is gone; that must not be dropped while the line is locked.
    pub fn grant(&mut self, id: u64, admitted: Admitted) -> Option<Admitted> {
        let turn = self.number();
        let Some(waiter) = self.waiting.remove(&id) else {
            return Some(admitted);
        };
        if let Some(own) = self.accounts.get_mut(&waiter.account) {
            own.turn = turn;
        }
        waiter.grant.send(admitted).err()
    }

    /// Notes that there is no room for the first in turn. What passed it already is remembered.
    pub fn block(&mut self, id: u64, wanted: Wanted, before: Option<Blocked>) {
        let passed = match before {
            Some(before) if before.id == id => before.passed,
            _ => HashMap::new(),
        };
        self.blocked = Some(Blocked { id, wanted, passed });
    }

    /// Counts what a request took past the one that waits for room.
    pub fn note(&mut self, passage: Passage, wanted: &Wanted) {
        if let (Passage::Counted, Some(first)) = (passage, &mut self.blocked) {
            first.passed.insert(wanted.content, wanted.bytes);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Seconds that the first in turn has waited: the line is at least as slow.
    fn retry_after(&self) -> u64 {
        let (least, most) = RETRY_SECONDS;
        let waited = self
            .blocked
            .as_ref()
            .map_or(Duration::ZERO, |first| first.wanted.arrived.elapsed());
        waited.as_secs().clamp(least, most)
    }
}

/// A request's place in the line, until it has its ticket. Dropping it leaves the line.
#[derive(Debug)]
pub(in crate::registry) struct Place {
    line: Arc<Line>,
    account: Account,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.line.lock();
        queue.taken -= 1;
        queue.waiting.remove(&self.id);
        if queue
            .blocked
            .as_ref()
            .is_some_and(|first| first.id == self.id)
        {
            queue.blocked = None;
        }
        if let Some(own) = queue.accounts.get_mut(&self.account) {
            own.places -= 1;
            if own.places == 0 {
                queue.accounts.remove(&self.account);
            }
        }
        drop(queue);
        self.line.used.changed.notify_one();
    }
}

/// Keeps others from loading the same content.
#[derive(Debug)]
pub(in crate::registry) struct Loading {
    line: Arc<Line>,
    content: Digest,
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.line.lock().loading.remove(&self.content);
        self.line.used.changed.notify_one();
    }
}
