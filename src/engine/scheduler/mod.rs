//! Scheduler: picks the sequences of the next step. Plain data, no tensors, no clocks, and no
//! tokens either: it knows the blocks that sequences have in common by their hashes.
//!
//! Sequences under one ticket form a group. The policy picks the groups of a step by
//! [`Scheduler::demand`]. Within a step, running sequences decode first, then prompts are computed
//! in chunks, and waiting sequences are admitted, until the rows or the KV blocks are used up. If
//! blocks run out, a running sequence is preempted: its blocks are freed, and it is computed again
//! later.
//!
//! - [`accounts`]: who was served how much, which decides who is next.
//! - [`fairness`]: the order of sequences, and the rows of a step.
//! - [`admission`]: which waiting sequence runs next.
//! - [`preemption`]: which running sequence yields, so that no account or ticket starves.
//! - [`prefix`]: sequences share full blocks, running or ended.

mod accounts;
mod admission;
mod entry;
mod fairness;
mod preemption;
mod prefix;

use std::collections::{HashMap, VecDeque};

use accounts::Accounts;
use entry::Entry;
pub use entry::NewSequence;

use super::blocks::{BlockAllocator, BlockHash};
use super::plan::{Chunk, Group, Groups, Plan, SequenceId};

/// Limits of a step. `max_num_batched_tokens` is at least `max_num_seqs`.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Sequences that hold KV blocks at once.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Number of KV blocks.
    pub blocks: usize,
    /// Positions per block.
    pub block_size: usize,
}

/// Work of a group that is ready for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The group.
    pub group: Group,
    /// Start of its wait: the step in which it was last served, or in which its oldest sequence
    /// arrived; and that sequence.
    pub since: (u64, SequenceId),
    /// Tokens that it would compute if it ran apart.
    pub rows: usize,
    /// Whether a light account waits for a first token of it; see [`fairness`].
    pub urgent: bool,
}

/// The waiting and the running queue, both in order of arrival, and the KV blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    blocks: BlockAllocator,
    /// Blocks that running sequences will compute, each with the first of them; none is cached.
    claims: HashMap<BlockHash, Claim>,
    accounts: Accounts,
    /// Rows of a step while newcomers have to be expected, and the step before which they have.
    pace: usize,
    paced_until: u64,
    /// Last step of each group that has sequences.
    served: HashMap<Group, u64>,
    step: u64,
    preemptions: u64,
}

/// The running sequence that will compute a block, and its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    id: SequenceId,
    priority: i32,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            blocks: BlockAllocator::new(config.blocks),
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            claims: HashMap::new(),
            accounts: Accounts::default(),
            pace: usize::MAX,
            paced_until: 0,
            served: HashMap::new(),
            step: 0,
            preemptions: 0,
        }
    }

    /// Queues a sequence. Any single sequence at its longest fits into the blocks: the engine
    /// checks that at its start.
    pub fn add(&mut self, sequence: NewSequence) {
        if self.accounts.enter(&sequence.account, sequence.group) {
            self.expect_newcomers();
        }
        self.waiting.push_back(Entry::new(sequence, self.step));
    }

    /// Removes a sequence that ended or was cancelled, and frees its blocks.
    pub fn remove(&mut self, id: SequenceId) {
        let running = self.running.iter().position(|entry| entry.id == id);
        let waiting = self.waiting.iter().position(|entry| entry.id == id);
        let gone = match (running, waiting) {
            (Some(at), _) => Some(self.running.remove(at)),
            (None, Some(at)) => self.waiting.remove(at),
            (None, None) => None,
        };
        if let Some(mut entry) = gone {
            self.deallocate(&mut entry);
            self.accounts.leave(&entry.account, entry.group);
            if !self.entries().any(|other| other.group == entry.group) {
                self.served.remove(&entry.group);
            }
        }
    }

    /// Counts a generated token of a running sequence, with the hash of the block that it
    /// fills, if any.
    pub fn extend(&mut self, id: SequenceId, filled: Vec<BlockHash>) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) {
            entry.tokens += 1;
            // The whole prompt was computed, and so scored.
            entry.needed_from = usize::MAX;
            entry.chain.extend(&filled);
            let claim = Claim {
                id,
                priority: entry.priority,
            };
            filled.into_iter().for_each(|hash| self.claim(claim, hash));
        }
    }

    /// Whether there are no sequences.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that wait for KV blocks.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that hold KV blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Share of the KV blocks that running sequences hold, 0 to 1.
    pub fn cache_usage(&self) -> f64 {
        let total = self.blocks.total();
        (total - self.blocks.available()) as f64 / total.max(1) as f64
    }

    /// Sequences preempted so far.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Groups that have work for the next step: those of newcomers first, then the longest-waiting.
    pub fn demand(&self) -> Vec<Demand> {
        let balance = self.accounts.balance();
        let mut demands: HashMap<Group, Demand> = HashMap::new();
        let mut add = |entry: &Entry, rows: usize| {
            let since = self.waits_since(entry);
            let demand = demands.entry(entry.group).or_insert(Demand {
                group: entry.group,
                since,
                rows: 0,
                urgent: false,
            });
            demand.since = since.min(demand.since);
            demand.rows += rows;
            demand.urgent |= self.is_urgent(entry, balance);
        };
        for entry in &self.running {
            add(entry, entry.uncomputed());
        }
        for at in self.admissible() {
            let entry = &self.waiting[at];
            add(entry, self.missing_tokens(entry));
        }
        let mut demands: Vec<Demand> = demands.into_values().collect();
        for demand in &mut demands {
            demand.rows = demand.rows.min(self.config.max_num_batched_tokens);
        }
        demands.sort_unstable_by_key(|demand| (!demand.urgent, demand.since));
        demands
    }

    /// Plans the next step of these groups, and counts its tokens as computed; after the step,
    /// [`Self::commit`] or [`Self::roll_back`] follows. Returns `None` if they have no work, or if
    /// a group's only sequence was preempted.
    pub fn schedule(&mut self, groups: &Groups) -> Option<Plan> {
        let rows = self.rows(groups);
        self.step += 1;
        let ready = self.ready_to_decode(groups);
        let mut chunks = self.decode(&ready, rows.decode);
        let prompts = rows.total.saturating_sub(chunks.len());
        self.admit(groups, prompts);
        chunks.extend(self.prefill(groups, &ready, prompts));
        for chunk in &chunks {
            self.served.insert(chunk.group, self.step);
        }
        chunks.sort_by_key(|chunk| chunk.group);
        let groups = groups.clone();
        (!chunks.is_empty()).then_some(Plan { groups, chunks })
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.running.iter().chain(&self.waiting)
    }

    /// Plans one token of the first `rows` of the sequences that are ready to decode.
    fn decode(&mut self, ready: &[SequenceId], rows: usize) -> Vec<Chunk> {
        let mut grown = Vec::new();
        for &id in ready {
            if grown.len() == rows {
                break;
            }
            if self.grow_or_preempt(id) {
                grown.push(id);
            }
        }
        // One that has grown may have been preempted for the next.
        let chunks = grown.into_iter().filter_map(|id| self.compute(id, 1));
        chunks.collect()
    }

    /// Plans chunks of prompts until the rows are used up, by rank, so that a flood of one
    /// account's prompts does not delay another's. `ready` are the sequences that decode instead.
    fn prefill(&mut self, groups: &Groups, ready: &[SequenceId], mut rows: usize) -> Vec<Chunk> {
        let balance = self.accounts.balance();
        let is_prompt = |entry: &&Entry| groups.contain(entry.group) && !ready.contains(&entry.id);
        let prompts = self.running.iter().filter(is_prompt);
        let mut order: Vec<_> = prompts
            .map(|entry| (self.rank(entry, balance), entry.id))
            .collect();
        order.sort_unstable();
        let mut chunks = Vec::new();
        for (_, id) in order {
            if let Some(chunk) = self.compute(id, rows) {
                rows -= chunk.len;
                chunks.push(chunk);
            }
        }
        chunks
    }

    /// Plans the next tokens of a running sequence, at most `rows`, and charges its account.
    fn compute(&mut self, id: SequenceId, rows: usize) -> Option<Chunk> {
        let entry = self.running.iter_mut().find(|entry| entry.id == id)?;
        let len = entry.uncomputed().min(rows);
        if len == 0 {
            return None;
        }
        let chunk = entry.take(len);
        if chunk.samples {
            entry.decoded = self.step;
        }
        let tokens = entry.charge();
        self.accounts.charge(&entry.account, entry.group, tokens);
        Some(chunk)
    }

    /// Start of a sequence's wait: the step in which its group was last served, or in which the
    /// sequence arrived; and its number.
    fn waits_since(&self, entry: &Entry) -> (u64, SequenceId) {
        let served = self.served.get(&entry.group).copied();
        (served.unwrap_or(entry.arrived), entry.id)
    }
}

#[cfg(test)]
mod tests;
