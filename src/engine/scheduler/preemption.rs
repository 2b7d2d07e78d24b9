//! Preemption: which running sequence gives up its blocks and its slot, to be computed again.
//!
//! A sequence that needs a block takes those of the account with the most running sequences: of
//! its least important, youngest one, which may be the sequence itself. And if the sequence that is
//! admitted next finds no room, though its account or its ticket runs none, another one with
//! several gives up one of them, unless it was served less.
//!
//! Nothing runs in circles: of the first kind, each preemption is followed by a token of the
//! sequence that got the block, or leaves one sequence less running; of the second, each lowers the
//! number of accounts and tickets that run none.

use std::collections::HashMap;
use std::hash::Hash;

use super::Scheduler;
use super::entry::Entry;
use crate::engine::account::Account;
use crate::engine::plan::{Groups, SequenceId};

impl Scheduler {
    /// Preempts for accounts and tickets that run nothing, until the sequence that is admitted next
    /// fits or nobody has to yield. To be called before [`Self::demand`].
    pub fn make_room(&mut self) {
        while let Some(at) = self.yields_to_newcomer() {
            self.preempt(at);
        }
    }

    /// Index of the running sequence that yields to the one that is admitted next.
    fn yields_to_newcomer(&self) -> Option<usize> {
        let &first = self.waiting_order().first()?;
        if self.fitting(&[first]) == 1 {
            return None;
        }
        let newcomer = &self.waiting[first];
        // If prompts fill the whole step anyway, the freed slot would stay unused.
        if self.tokens_before(newcomer, &Groups::All) >= self.config.max_num_batched_tokens {
            return None;
        }
        let service = |entry: &Entry| self.accounts.service(&entry.account, entry.group);
        let (served, served_within) = service(newcomer);
        let is_own = |entry: &&Entry| entry.account == newcomer.account;
        let own = || self.running.iter().filter(is_own);
        if own().next().is_none() {
            let rivals = self
                .running
                .iter()
                .filter(|entry| service(entry).0 >= served);
            let largest = largest(rivals, |entry| &entry.account)?;
            let largest = largest.clone();
            return self.last(|entry| entry.account == largest);
        }
        if own().any(|entry| entry.group == newcomer.group) {
            return None;
        }
        let rivals = own().filter(|entry| service(entry).1 >= served_within);
        let &largest = largest(rivals, |entry| &entry.group)?;
        self.last(|entry| entry.account == newcomer.account && entry.group == largest)
    }

    /// Allocates a block for the last token of a running sequence if it needs one, preempting
    /// others. Returns false if it was preempted itself.
    pub(super) fn grow_or_preempt(&mut self, id: SequenceId) -> bool {
        loop {
            let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) else {
                return false;
            };
            let blocks = entry.tokens.div_ceil(self.config.block_size);
            if self.blocks.grow(&mut entry.blocks, blocks) {
                return true;
            }
            let account = self.largest_account();
            let last = self.last(|entry| entry.account == account);
            self.preempt(last.expect("the largest account has a sequence"));
        }
    }

    /// The account with the most running sequences; of several, that of the youngest sequence.
    fn largest_account(&self) -> Account {
        let counts = counts(self.running.iter(), |entry| &entry.account);
        let largest = self
            .running
            .iter()
            .max_by_key(|entry| counts[&entry.account]);
        largest.expect("a sequence that grows runs").account.clone()
    }

    /// Index of the least important running sequence among these, and of several the youngest.
    fn last(&self, among: impl Fn(&Entry) -> bool) -> Option<usize> {
        let running = self.running.iter().enumerate();
        let among = running.filter(|(_, entry)| among(entry));
        let last = among.max_by_key(|(_, entry)| (entry.priority, entry.id));
        last.map(|(at, _)| at)
    }

    /// Moves `running[at]` back to the waiting queue, to be computed again.
    pub(super) fn preempt(&mut self, at: usize) {
        let mut entry = self.running.remove(at);
        self.deallocate(&mut entry);
        self.preemptions += 1;
        let place = self.waiting.partition_point(|other| other.id < entry.id);
        self.waiting.insert(place, entry);
    }
}

/// Number of sequences by key.
fn counts<'a, K: Eq + Hash>(
    entries: impl Iterator<Item = &'a Entry>,
    key: impl Fn(&'a Entry) -> &'a K,
) -> HashMap<&'a K, usize> {
    let mut counts = HashMap::new();
    for entry in entries {
        *counts.entry(key(entry)).or_default() += 1;
    }
    counts
}

/// Key of most of the sequences, if these are at least two; of several keys, that of the youngest
/// sequence.
fn largest<'a, K: Eq + Hash>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    key: impl Fn(&'a Entry) -> &'a K,
) -> Option<&'a K> {
    let counts = counts(entries.clone(), &key);
    let largest = entries.max_by_key(|entry| counts[key(entry)])?;
    let largest = key(largest);
    (counts[largest] >= 2).then_some(largest)
}
