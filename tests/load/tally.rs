//! Counts of a run, and what went wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// What happened so far.
#[derive(Default)]
pub struct Tally(Mutex<Counts>);

/// Counts of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Answers that arrived whole and were checked.
    pub whole: u64,
    /// Of these, streamed ones.
    pub streamed: u64,
    /// Streams that the client left; what had arrived was checked.
    pub left: u64,
    /// Requests that the client broke off before their end.
    pub half_sent: u64,
    /// Lists of tickets that were checked.
    pub lists: u64,
    /// Tokens of checked answers.
    pub tokens: u64,
    /// Uploads that were acknowledged.
    pub uploads: u64,
    /// Uploads that the client broke off.
    pub broken_uploads: u64,
    /// Deletions that were acknowledged.
    pub deletions: u64,
    /// Documented refusals, by status and code.
    pub refused: BTreeMap<String, u64>,
    /// Number of violations.
    pub violations: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

impl Tally {
    /// Changes the counts.
    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
    }

    /// Records that something is wrong.
    pub fn violation(&self, what: String) {
        let mut counts = self.lock();
        counts.violations += 1;
        if counts.examples.len() < 10 {
            counts.examples.push(what);
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
