//! Fairness between accounts within a step.
//!
//! - Sequences are admitted, and prompts computed, in the order of their [`Rank`]: those that are
//!   urgent first, then by the service of their account and ticket, then by the priority of the
//!   request, then by age. A sequence is *urgent* while it waits for its first token and its
//!   account is light: has few sequences and little service.
//! - Newcomers wait for the step in progress, so that step is short: for [`PACED_STEPS`] after an
//!   account joined others, a step has no more rows than its *pace*. If more sequences decode than
//!   that, they take turns by the same counters.
//! - A long urgent prompt takes a longer step, and the others a quarter of its rows.

use std::collections::HashMap;

use super::Scheduler;
use super::accounts::{Balance, Service};
use super::entry::Entry;
use crate::engine::account::Account;
use crate::engine::plan::{Groups, SequenceId};

/// Steps for which the rows are paced after an account joined others.
const PACED_STEPS: u64 = 256;

/// Share of the rows that prompts get beside sequences that decode, and these beside an urgent
/// prompt: one in four.
const MINOR_SHARE: usize = 4;

/// Tokens that a sequence is charged for a step in which it decodes: the one that it computes, and
/// the one that it generates.
const DECODE_TOKENS: u64 = 2;

/// Order of admission and of prompts, the smallest first: whether the sequence is not urgent,
/// service, priority, age.
pub type Rank = (bool, Service, i32, SequenceId);

/// Rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Sequences that may decode.
    pub decode: usize,
    /// All rows.
    pub total: usize,
}

impl Scheduler {
    /// Sets the rows of a step while newcomers have to be expected.
    pub fn set_pace(&mut self, rows: usize) {
        self.pace = rows;
    }

    /// Notes that an account joined others.
    pub(super) fn expect_newcomers(&mut self) {
        self.paced_until = self.step + PACED_STEPS;
    }

    /// Rows of the next step of these groups.
    pub(super) fn rows(&self, groups: &Groups) -> Rows {
        let most = self.config.max_num_batched_tokens;
        if self.step >= self.paced_until || self.pace >= most {
            return Rows {
                decode: most,
                total: most,
            };
        }
        let urgent = self.urgent_tokens(groups);
        let total = (urgent + urgent / MINOR_SHARE).max(self.pace).min(most);
        let urgent = urgent.min(total - total / (MINOR_SHARE + 1));
        let rest = total - urgent;
        let prompts = if self.has_other_prompts(groups) {
            rest / MINOR_SHARE
        } else {
            0
        };
        let decode = (rest - prompts).max(1);
        Rows { decode, total }
    }

    /// Whether a sequence is urgent; see the module.
    pub(super) fn is_urgent(&self, entry: &Entry, balance: Balance) -> bool {
        entry.awaits_first_token() && self.accounts.is_light(&entry.account, balance)
    }

    /// Rank of a sequence by the service so far.
    pub(super) fn rank(&self, entry: &Entry, balance: Balance) -> Rank {
        let service = self.accounts.service(&entry.account, entry.group);
        let urgent = self.is_urgent(entry, balance);
        (!urgent, service, entry.priority, entry.id)
    }

    /// Tokens of urgent prompts of these groups that are still to be computed.
    fn urgent_tokens(&self, groups: &Groups) -> usize {
        let balance = self.accounts.balance();
        let urgent = |entry: &&Entry| groups.contain(entry.group) && self.is_urgent(entry, balance);
        let running = self.running.iter().filter(urgent);
        let waiting = self.waiting.iter().filter(urgent);
        running.map(Entry::uncomputed).sum::<usize>()
            + waiting
                .map(|entry| self.missing_tokens(entry))
                .sum::<usize>()
    }

    /// Whether sequences of these groups that are not urgent have prompts to compute, or could be
    /// admitted.
    fn has_other_prompts(&self, groups: &Groups) -> bool {
        let balance = self.accounts.balance();
        let others = |entry: &Entry| groups.contain(entry.group) && !self.is_urgent(entry, balance);
        let slots = self.running.len() < self.config.max_num_seqs;
        self.running
            .iter()
            .any(|entry| entry.uncomputed() > 1 && others(entry))
            || slots && self.waiting.iter().any(others)
    }

    /// The running sequences of these groups with a single token to compute, in the order in which
    /// they decode if not all can: urgent ones first. Then the account that would have been served
    /// least is next, with its most important sequence, and of several the one that has waited
    /// longest.
    pub(super) fn ready_to_decode(&self, groups: &Groups) -> Vec<SequenceId> {
        let balance = self.accounts.balance();
        let is_ready = |entry: &&Entry| groups.contain(entry.group) && entry.uncomputed() == 1;
        let mut ready: Vec<&Entry> = self.running.iter().filter(is_ready).collect();
        ready.sort_by_key(|entry| (entry.priority, entry.decoded, entry.id));
        let mut served: HashMap<&Account, u64> = HashMap::new();
        let mut order = Vec::with_capacity(ready.len());
        for entry in ready {
            let service = || self.accounts.service(&entry.account, entry.group).0;
            let served = served.entry(&entry.account).or_insert_with(service);
            order.push((!self.is_urgent(entry, balance), *served, entry.id));
            *served += DECODE_TOKENS;
        }
        order.sort_by_key(|&(not_urgent, served, _)| (not_urgent, served));
        order.into_iter().map(|(_, _, id)| id).collect()
    }
}
