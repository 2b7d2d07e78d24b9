//! Places of the uploads in progress: a few run, some wait in line, and their files share a budget.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::error::ApiError;
use super::shares::Party;
use crate::access::Holdings;

/// Uploads that are received and validated at the same time: one tenant has at most one less, so
/// that another finds a place.
const CONCURRENT_UPLOADS: usize = 5;
/// Uploads that wait, four fifths of them at most of one tenant; further ones are answered with
/// status 429.
const WAITING_UPLOADS: usize = 32;
/// Longest time in line: a client that has left is not noticed there.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds of the uploads in progress: how many, how many wait, and their bytes on disk.
pub struct UploadGate {
    places: Mutex<Places>,
    /// Told when a place may have become free.
    freed: Notify,
    /// Bytes on disk of the uploads in progress.
    spooled: AtomicU64,
    spool_budget: u64,
    /// Milliseconds that recent uploads took, as a moving average.
    recent_ms: AtomicU64,
}

struct Places {
    running: Holdings<Party>,
    waiting: Holdings<Party>,
    /// Numbers and parties of those who wait, in order of arrival.
    line: VecDeque<(u64, Party)>,
    next: u64,
}

/// Place of an upload in progress; its spooled bytes return to the budget when it is dropped.
pub struct UploadPlace {
    gate: Arc<UploadGate>,
    party: Party,
    begun: Instant,
    spooled: u64,
}

impl UploadGate {
    /// A gate without uploads, whose files may take `spool_budget` bytes together.
    pub fn new(spool_budget: u64) -> Self {
        let places = Places {
            running: Holdings::new(CONCURRENT_UPLOADS),
            waiting: Holdings::new(WAITING_UPLOADS),
            line: VecDeque::new(),
            next: 0,
        };
        Self {
            places: Mutex::new(places),
            freed: Notify::new(),
            spooled: AtomicU64::new(0),
            spool_budget,
            recent_ms: AtomicU64::new(0),
        }
    }

    /// Bytes on disk that all uploads may take together.
    pub fn spool_budget(&self) -> u64 {
        self.spool_budget
    }

    /// Waits for a place. The next one goes to the tenant with the fewest running uploads, among
    /// equals in order of arrival.
    ///
    /// # Errors
    /// Too many uploads wait already, of all or of this party; or the wait was too long.
    pub async fn enter(self: &Arc<Self>, party: &Party) -> Result<UploadPlace, ApiError> {
        self.enter_within(party, LINE_TIMEOUT).await
    }

    async fn enter_within(
        self: &Arc<Self>,
        party: &Party,
        timeout: Duration,
    ) -> Result<UploadPlace, ApiError> {
        let turn = Turn::join(self, party)?;
        let called = async {
            loop {
                // Before the check, so that no call is missed.
                let freed = self.freed.notified();
                if let Some(place) = turn.run() {
                    return place;
                }
                freed.await;
            }
        };
        let in_time = tokio::time::timeout(timeout, called).await;
        in_time.map_err(|_| self.busy(&self.lock()))
    }

    /// The refusal, with the seconds until an upload that arrives now would have its turn, at the
    /// recent pace.
    fn busy(&self, places: &Places) -> ApiError {
        let rounds = places.line.len().div_ceil(CONCURRENT_UPLOADS).max(1) as u64;
        let recent_ms = self.recent_ms.load(Ordering::Relaxed);
        let retry_after = recent_ms.saturating_mul(rounds).div_ceil(1000).max(1);
        ApiError::UploadQueueFull { retry_after }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // No code panics while it holds the lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line, left on drop.
struct Turn<'a> {
    gate: &'a Arc<UploadGate>,
    party: &'a Party,
    number: u64,
}

impl<'a> Turn<'a> {
    fn join(gate: &'a Arc<UploadGate>, party: &'a Party) -> Result<Self, ApiError> {
        let mut places = gate.lock();
        if places.waiting.take(party, 1).is_err() {
            return Err(gate.busy(&places));
        }
        let number = places.next;
        places.next += 1;
        places.line.push_back((number, party.clone()));
        Ok(Self {
            gate,
            party,
            number,
        })
    }

    /// The place of the upload, if it is its turn.
    fn run(&self) -> Option<UploadPlace> {
        let mut places = self.gate.lock();
        let fewest = |(_, party): &&(u64, Party)| places.running.held(party);
        let (next, _) = places.line.iter().min_by_key(fewest)?;
        if *next != self.number {
            return None;
        }
        places.running.take(self.party, 1).ok()?;
        Some(UploadPlace {
            gate: Arc::clone(self.gate),
            party: self.party.clone(),
            begun: Instant::now(),
            spooled: 0,
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut places = self.gate.lock();
        places.line.retain(|(number, _)| *number != self.number);
        places.waiting.free(self.party, 1);
        drop(places);
        self.gate.freed.notify_waiters();
    }
}

impl UploadPlace {
    /// Takes `bytes` from the budget.
    pub fn spool(&mut self, bytes: u64) -> Result<(), ApiError> {
        let gate = &self.gate;
        let total = gate.spooled.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.spooled += bytes;
        if total > gate.spool_budget {
            return Err(gate.busy(&gate.lock()));
        }
        Ok(())
    }
}

impl Drop for UploadPlace {
    fn drop(&mut self) {
        let gate = &self.gate;
        gate.spooled.fetch_sub(self.spooled, Ordering::AcqRel);
        let took = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = gate.recent_ms.load(Ordering::Relaxed);
        // A lost update of the average does no harm.
        let average = before - before / 8 + took / 8;
        gate.recent_ms.store(average.max(1), Ordering::Relaxed);
        gate.lock().running.free(&self.party, 1);
        gate.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Running and waiting uploads of one tenant alone.
    const RUNNING: usize = 4;
    const IN_LINE: usize = 26;

    fn gate() -> Arc<UploadGate> {
        Arc::new(UploadGate::new(100))
    }

    fn party(name: &str) -> Party {
        Some(name.parse().unwrap())
    }

    async fn running(gate: &Arc<UploadGate>, party: &Party, uploads: usize) -> Vec<UploadPlace> {
        let mut places = Vec::new();
        for _ in 0..uploads {
            places.push(gate.enter(party).await.unwrap());
        }
        places
    }

    #[tokio::test]
    async fn uploads_wait_in_line_and_the_line_is_bounded() {
        let (gate, all) = (gate(), None);
        let mut places = running(&gate, &all, RUNNING).await;
        let mut waiting: Vec<_> = (0..IN_LINE).map(|_| Box::pin(gate.enter(&all))).collect();
        for wait in &mut waiting {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        assert!(matches!(
            gate.enter(&all).await,
            Err(ApiError::UploadQueueFull { .. })
        ));
        drop(places.pop());
        let mut later = waiting.split_off(1);
        assert!(later[0].as_mut().now_or_never().is_none());
        assert!(waiting.remove(0).await.is_ok());
        // A client that gives up leaves the line.
        drop(later.pop());
        assert_eq!(gate.lock().waiting.taken(), later.len());
        drop(later);
        assert_eq!(gate.lock().waiting.taken(), 0);
    }

    #[tokio::test]
    async fn a_tenant_neither_takes_every_place_nor_the_turns_of_others() {
        let (gate, acme, beta) = (gate(), party("acme"), party("beta"));
        let mut places = running(&gate, &acme, RUNNING).await;
        let mut own: Vec<_> = (0..IN_LINE).map(|_| Box::pin(gate.enter(&acme))).collect();
        for wait in &mut own {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        let first = gate.enter(&beta).now_or_never().expect("a free place");
        let mut second = Box::pin(gate.enter(&beta));
        assert!(second.as_mut().now_or_never().is_none());
        // The next place is for the tenant that has the fewest, though the other one came first.
        drop(places.pop());
        assert!(own[0].as_mut().now_or_never().is_none());
        let second = second.now_or_never().expect("the freed place");
        assert!(first.is_ok() && second.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_forever() {
        let (gate, all) = (gate(), None);
        let _places = running(&gate, &all, RUNNING).await;
        let refused = gate.enter_within(&all, Duration::from_millis(1)).await;
        assert!(matches!(refused, Err(ApiError::UploadQueueFull { .. })));
        assert_eq!(gate.lock().waiting.taken(), 0);
    }

    #[tokio::test]
    async fn the_bytes_of_uploads_in_progress_are_bounded_and_returned() {
        let (gate, all) = (gate(), None);
        let (mut a, mut b) = (
            gate.enter(&all).await.unwrap(),
            gate.enter(&all).await.unwrap(),
        );
        assert!(a.spool(60).is_ok());
        assert!(matches!(b.spool(60), Err(ApiError::UploadQueueFull { .. })));
        drop(b);
        assert!(a.spool(40).is_ok());
        drop(a);
        assert_eq!(gate.spooled.load(Ordering::Relaxed), 0);
    }
}
