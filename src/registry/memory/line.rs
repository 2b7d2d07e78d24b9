//! The line of requests whose ticket is not in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::registry::lock;

/// How long the first in line for memory lets later requests join tickets that are in memory
/// already. After that they queue behind it, so that a busy ticket does not keep others out.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bounded line, first come first served.
#[derive(Debug, Default)]
pub(in crate::registry) struct Line {
    /// Its lock is handed over in order of arrival.
    turn: AsyncMutex<()>,
    /// Arrival of the first in line, once it waits for room.
    first_since: Mutex<Option<Instant>>,
    waiting: AtomicUsize,
}

impl Line {
    /// Whether a request that arrived then may use a ticket that is in memory: not if the first in
    /// line has waited too long already.
    pub fn may_join(&self, arrived: Instant) -> bool {
        lock(&self.first_since).is_none_or(|since| arrived <= since + PATIENCE)
    }

    /// Counts a waiting request until the guard is dropped. The error is the number of those that
    /// wait, at least `max`.
    pub fn enter(&self, max: usize) -> Result<Waiting<'_>, usize> {
        let waiting = Waiting(&self.waiting);
        match self.waiting.fetch_add(1, Ordering::Relaxed) {
            before if before >= max => Err(before),
            _ => Ok(waiting),
        }
    }

    /// Number of waiting requests.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits until all that came before are gone.
    pub(super) async fn first(&self) -> First<'_> {
        First {
            since: &self.first_since,
            _turn: self.turn.lock().await,
        }
    }
}

/// A waiting request, counted.
pub(in crate::registry) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first in line, until it is dropped.
pub(super) struct First<'a> {
    since: &'a Mutex<Option<Instant>>,
    // Released after `drop` has cleared `since`.
    _turn: MutexGuard<'a, ()>,
}

impl First<'_> {
    /// Notes that this request, which arrived then, waits for room.
    pub fn waits(&self, arrived: Instant) {
        lock(self.since).get_or_insert(arrived);
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        *lock(self.since) = None;
    }
}
