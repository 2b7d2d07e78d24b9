//! Shares of the queue: the places that requests hold from admission until their sequence ends.
//!
//! Accounts share them as [`Holdings`] says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::{Holdings, Shortage, within_share};
use crate::engine::account::Account;

/// Freed places that the rate of completions is measured over.
const MEASURED: usize = 64;

/// Bounds of the advised pause before a retry, in seconds.
const RETRY_SECONDS: (f64, f64) = (1.0, 60.0);

/// The places of the queue, by account.
#[derive(Debug)]
pub struct Shares {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    places: Holdings<Account>,
    clock: BusyClock,
    /// Busy time at which each of the latest places was freed, oldest first.
    freed: VecDeque<Duration>,
}

/// Reason why places were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too few places are free.
    Full { retry_after: u64 },
    /// The account holds its share. `retry_after` is in seconds.
    Share { retry_after: u64 },
}

/// A place in the queue, freed when dropped.
#[derive(Debug)]
pub struct Place {
    shares: Arc<Shares>,
    account: Account,
}

impl Shares {
    /// A queue of `capacity` free places.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::new(State::new(capacity)),
        }
    }

    /// Number of all places.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of places that are taken.
    pub fn taken(&self) -> usize {
        self.lock().places.taken()
    }

    /// Number of places that an account gets at most, if no other holds any.
    pub fn largest(&self) -> usize {
        let fits = |&places: &usize| within_share(0, self.capacity, places);
        (1..=self.capacity).rev().find(fits).unwrap_or(0)
    }

    /// Takes places for an account: all or none.
    pub fn take(self: &Arc<Self>, account: &Account, places: usize) -> Result<Vec<Place>, Refused> {
        let mut state = self.lock();
        let (held, free) = (state.places.held(account), state.places.available());
        match state.places.take(account, places) {
            Ok(()) if places > 0 => state.clock.start(),
            Ok(()) => {}
            Err(Shortage::Full) => {
                let retry_after = state.seconds_until(places - free, state.places.taken());
                return Err(Refused::Full { retry_after });
            }
            Err(Shortage::Share) => {
                let retry_after = state.seconds_until(missing(held, free, places), held);
                return Err(Refused::Share { retry_after });
            }
        }
        let place = || Place {
            shares: Arc::clone(self),
            account: account.clone(),
        };
        Ok(std::iter::repeat_with(place).take(places).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Number of its places that an account has to free until `places` more are within its share.
fn missing(held: usize, free: usize, places: usize) -> usize {
    let enough = |freed: &usize| within_share(held - freed, free + freed, places);
    (1..=held).find(enough).unwrap_or(held.max(1))
}

impl State {
    /// A queue of `capacity` free places.
    fn new(capacity: usize) -> Self {
        Self {
            places: Holdings::new(capacity),
            clock: BusyClock::default(),
            freed: VecDeque::new(),
        }
    }

    /// Seconds until `places` of `among` places are freed, at the measured rate.
    fn seconds_until(&self, places: usize, among: usize) -> u64 {
        let now = self.clock.now();
        let since = match self.freed.front() {
            Some(&oldest) if self.freed.len() == MEASURED => now - oldest,
            _ => now,
        };
        let share = among as f64 / self.places.taken().max(1) as f64;
        let per_place = since.as_secs_f64() / self.freed.len().max(1) as f64;
        let seconds = places as f64 * per_place / share.max(f64::MIN_POSITIVE);
        let (least, most) = RETRY_SECONDS;
        seconds.ceil().clamp(least, most) as u64
    }

    fn free(&mut self, account: &Account) {
        self.places.free(account, 1);
        if self.freed.len() == MEASURED {
            self.freed.pop_front();
        }
        self.freed.push_back(self.clock.now());
        if self.places.taken() == 0 {
            self.clock.stop();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.lock().free(&self.account);
    }
}

/// Clock that runs only while places are taken, so that idle time does not count as slowness.
#[derive(Debug, Default)]
struct BusyClock {
    before: Duration,
    since: Option<Instant>,
}

impl BusyClock {
    fn now(&self) -> Duration {
        let running = self.since.map(|since| since.elapsed());
        self.before + running.unwrap_or_default()
    }

    fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn stop(&mut self) {
        self.before = self.now();
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::Digest;

    fn account(n: u8) -> Account {
        Account::Group(Some(Digest([n; 32])))
    }

    fn shares(capacity: usize) -> Arc<Shares> {
        Arc::new(Shares::new(capacity))
    }

    /// Takes single places until one is refused.
    fn flood(shares: &Arc<Shares>, account: &Account) -> Vec<Place> {
        std::iter::from_fn(|| shares.take(account, 1).ok()?.pop()).collect()
    }

    #[test]
    fn an_account_alone_gets_four_fifths_and_a_newcomer_always_gets_in() {
        for (capacity, most) in [(1, 1), (2, 2), (4, 4), (5, 4), (8, 7), (10, 8), (320, 256)] {
            let shares = shares(capacity);
            assert_eq!(shares.largest(), most);
            let held = flood(&shares, &account(1));
            assert_eq!(held.len(), most, "of {capacity}");
            let newcomer = shares.take(&account(2), 1);
            assert_eq!(newcomer.is_ok(), most < capacity);
        }
    }

    #[test]
    fn accounts_that_want_everything_get_about_equal_shares() {
        let shares = shares(320);
        let mut held: Vec<Vec<Place>> = vec![flood(&shares, &account(0))];
        for n in 1..4 {
            held.push(flood(&shares, &account(n)));
        }
        // Those that came first return places, and all try again.
        for _ in 0..200 {
            for (n, places) in (0..).zip(&mut held) {
                places.pop();
                places.extend(flood(&shares, &account(n)));
            }
            for places in &mut held {
                places.truncate(places.len().saturating_sub(places.len() / 20));
            }
        }
        let sizes: Vec<usize> = held.iter().map(Vec::len).collect();
        let (least, most) = (sizes.iter().min(), sizes.iter().max());
        assert!(most.unwrap() <= &(2 * least.unwrap()), "{sizes:?}");
        assert!(shares.take(&account(9), 1).is_ok());
    }

    #[test]
    fn places_are_taken_together_or_not_at_all_and_freed_one_by_one() {
        let shares = shares(10);
        assert!(matches!(
            shares.take(&account(1), 11),
            Err(Refused::Full { .. })
        ));
        assert!(matches!(
            shares.take(&account(1), 9),
            Err(Refused::Share { .. })
        ));
        assert_eq!(shares.taken(), 0);
        let mut places = shares.take(&account(1), 8).unwrap();
        places.pop();
        assert_eq!(shares.taken(), 7);
        drop(places);
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().places.is_untouched());
    }

    #[test]
    fn the_advised_pause_follows_the_measured_rate() {
        let mut state = State {
            // Two places per second, measured over 64 of them.
            freed: (0..64).map(|n| Duration::from_millis(500 * n)).collect(),
            ..State::new(100)
        };
        state.clock.before = Duration::from_secs(32);
        state.places.take(&account(1), 20).unwrap();
        assert_eq!(state.seconds_until(1, 20), 1);
        assert_eq!(state.seconds_until(10, 20), 5);
        // A quarter of the places is this account's, and so is a quarter of the freed ones.
        assert_eq!(state.seconds_until(2, 5), 4);
        assert_eq!(state.seconds_until(1000, 20), 60);
        // Nothing was freed yet: the queue is at least as slow as it has been busy.
        state.freed.clear();
        assert_eq!(state.seconds_until(1, 20), 32);
    }
}
