//! Admission: picks the waiting sequence that runs next.

use std::collections::HashMap;

use super::Scheduler;
use super::accounts::Service;
use super::entry::Entry;
use super::fairness::Rank;
use crate::engine::account::Account;
use crate::engine::plan::{Group, Groups};

impl Scheduler {
    /// Moves waiting sequences of the groups to the running queue, with blocks for all their
    /// tokens, until those before them use up the rows of the step.
    pub(super) fn admit(&mut self, groups: &Groups, rows: usize) {
        while let Some(at) = self.next_admissible(groups) {
            if self.tokens_before(&self.waiting[at], groups) >= rows {
                return;
            }
            let mut entry = self.waiting.remove(at).expect("admissible is in the queue");
            let fits = self.allocate(&mut entry);
            debug_assert!(fits, "admissible checked the blocks");
            let place = self.running.partition_point(|other| other.id < entry.id);
            self.running.insert(place, entry);
        }
    }

    /// Tokens of prompts of the groups' running sequences that rank before this one.
    pub(super) fn tokens_before(&self, entry: &Entry, groups: &Groups) -> usize {
        let balance = self.accounts.balance();
        let rank = self.rank(entry, balance);
        let is_before = |other: &&Entry| {
            // One token is that of a sequence that decodes, in this step or the next.
            let prompt = groups.contain(other.group) && other.uncomputed() > 1;
            prompt && self.rank(other, balance) <= rank
        };
        let before = self.running.iter().filter(is_before);
        before.map(Entry::uncomputed).sum()
    }

    /// Queue indices of the waiting sequences, of each group the first, in the order of their
    /// admission: by rank, where what the running sequences of an account and a group are about to
    /// compute counts as served. Sequences for which a running one computes a block are left out.
    pub(super) fn waiting_order(&self) -> Vec<usize> {
        let balance = self.accounts.balance();
        let pending = self.pending();
        let mut first: HashMap<(&Account, Group), (Rank, usize)> = HashMap::new();
        for (at, entry) in self.waiting.iter().enumerate() {
            let (urgent, service, priority, id) = self.rank(entry, balance);
            let rank = (urgent, pending.added_to(service, entry), priority, id);
            let key = (&entry.account, entry.group);
            let is_first = first.get(&key).is_none_or(|(best, _)| rank < *best);
            if is_first && !self.is_deferred(entry) {
                first.insert(key, (rank, at));
            }
        }
        let mut order: Vec<_> = first.into_values().collect();
        order.sort_unstable();
        order.into_iter().map(|(_, at)| at).collect()
    }

    /// What the running sequences are about to compute.
    fn pending(&self) -> Pending<'_> {
        let mut pending = Pending::default();
        for entry in &self.running {
            let tokens = entry.uncomputed() as u64;
            *pending.accounts.entry(&entry.account).or_default() += tokens;
            let group = (&entry.account, entry.group);
            *pending.groups.entry(group).or_default() += tokens;
        }
        pending
    }

    /// Queue indices of the sequences that fit beside all those that are admitted before them, so
    /// that small requests do not use up the blocks that a large one waits for.
    pub(super) fn admissible(&self) -> Vec<usize> {
        let mut order = self.waiting_order();
        order.truncate(self.fitting(&order));
        order
    }

    /// Queue index of the sequence of these groups that is admitted next, if it fits.
    fn next_admissible(&self, groups: &Groups) -> Option<usize> {
        let admissible = self.admissible();
        let mut own = admissible.into_iter();
        own.find(|&at| groups.contain(self.waiting[at].group))
    }

    /// Number of the first of these queue indices for which there are blocks and slots.
    pub(super) fn fitting(&self, queued: &[usize]) -> usize {
        let slots = self.config.max_num_seqs - self.running.len();
        let mut blocks = self.blocks.available();
        let mut fits = |&at: &usize| {
            let needed = self.missing_blocks(&self.waiting[at]);
            let rest = blocks.checked_sub(needed);
            blocks = rest.unwrap_or(0);
            rest.is_some()
        };
        let queued = queued.iter().take(slots);
        queued.take_while(|at| fits(at)).count()
    }
}

/// Uncomputed tokens of running sequences, by account and by group of an account.
#[derive(Default)]
struct Pending<'a> {
    accounts: HashMap<&'a Account, u64>,
    groups: HashMap<(&'a Account, Group), u64>,
}

impl Pending<'_> {
    /// The service of a sequence's account and group once that is computed.
    fn added_to(&self, (account, group): Service, entry: &Entry) -> Service {
        let accounts = self.accounts.get(&entry.account);
        let groups = self.groups.get(&(&entry.account, entry.group));
        let add = |service, pending: Option<&u64>| service + pending.copied().unwrap_or(0);
        (add(account, accounts), add(group, groups))
    }
}
