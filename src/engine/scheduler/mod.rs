//! Scheduler: picks the sequences of the next step. Plain data, no tensors, no clocks, and no
//! tokens either: it knows the blocks that sequences have in common by their hashes.
//!
//! Sequences under one ticket form a group. The policy picks the groups of a step by
//! [`Scheduler::demand`]. Within a step, running sequences decode first, then prompts are computed
//! in chunks, and waiting sequences are admitted, oldest first, until the token budget or the KV
//! blocks are used up. If blocks run out, the youngest running sequence is preempted: its blocks
//! are freed, and it is computed again later.
//!
//! A free slot goes to the group with the fewest running sequences, and a group without any
//! preempts a sequence of the group with the most, so no ticket starves: see [`admission`].
//!
//! Sequences share full blocks, running or ended: see [`prefix`].

mod admission;
mod prefix;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::blocks::{BlockAllocator, BlockHash, BlockTable};
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

/// A sequence that joins the queue.
#[derive(Debug, Default)]
pub struct NewSequence {
    /// Its number; they ascend.
    pub id: SequenceId,
    /// Its group.
    pub group: Group,
    /// Known tokens, at least one.
    pub tokens: usize,
    /// Hashes of the full blocks of those tokens; empty if it shares no blocks.
    pub chain: Vec<BlockHash>,
    /// Position of the first token whose row scores the prompt; `usize::MAX` if none does.
    pub scores_from: usize,
}

/// A sequence in one of the queues.
#[derive(Debug)]
struct Entry {
    id: SequenceId,
    group: Group,
    /// The step in which it arrived.
    arrived: u64,
    /// Known tokens: the prompt and the generated ones.
    tokens: usize,
    /// Tokens whose keys and values are in the blocks, or will be after the planned step.
    computed: usize,
    /// Empty while the sequence waits.
    blocks: BlockTable,
    /// Hashes of the full blocks of the known tokens.
    chain: Vec<BlockHash>,
    /// Blocks at the start of the table that are cached, so that this sequence never writes them.
    cached: usize,
    /// As in [`NewSequence`], until the prompt has been scored.
    scores_from: usize,
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
}

/// The waiting and the running queue, both in order of arrival, and the KV blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    blocks: BlockAllocator,
    /// Blocks that running sequences will compute, each with the first of them; none is cached.
    claims: HashMap<BlockHash, SequenceId>,
    /// Last step of each group that has sequences.
    served: HashMap<Group, u64>,
    step: u64,
    preemptions: u64,
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
            served: HashMap::new(),
            step: 0,
            preemptions: 0,
        }
    }

    /// Queues a sequence. Any single sequence at its longest fits into the blocks: the engine
    /// checks that at its start.
    pub fn add(&mut self, sequence: NewSequence) {
        self.waiting.push_back(Entry {
            id: sequence.id,
            group: sequence.group,
            arrived: self.step,
            tokens: sequence.tokens,
            computed: 0,
            blocks: BlockTable::default(),
            chain: sequence.chain,
            cached: 0,
            scores_from: sequence.scores_from,
        });
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
            entry.scores_from = usize::MAX;
            entry.chain.extend(&filled);
            filled.into_iter().for_each(|hash| self.claim(id, hash));
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

    /// Groups that have work for the next step, the longest-waiting first.
    pub fn demand(&self) -> Vec<Demand> {
        let mut demands: HashMap<Group, Demand> = HashMap::new();
        let mut add = |entry: &Entry, rows: usize| {
            let since = self.waits_since(entry);
            let demand = demands.entry(entry.group).or_insert(Demand {
                group: entry.group,
                since,
                rows: 0,
            });
            demand.since = since.min(demand.since);
            demand.rows += rows;
        };
        for entry in &self.running {
            add(entry, entry.tokens - entry.computed);
        }
        for at in self.oldest_admissible() {
            let entry = &self.waiting[at];
            add(entry, self.missing_tokens(entry));
        }
        let mut demands: Vec<Demand> = demands.into_values().collect();
        for demand in &mut demands {
            demand.rows = demand.rows.min(self.config.max_num_batched_tokens);
        }
        demands.sort_unstable_by_key(|demand| demand.since);
        demands
    }

    /// Plans the next step of these groups, and counts its tokens as computed; after the step,
    /// [`Self::commit`] or [`Self::roll_back`] follows. Returns `None` if they have no work, or if
    /// a group's only sequence was the youngest and was preempted.
    pub fn schedule(&mut self, groups: &Groups) -> Option<Plan> {
        // If prompts fill the whole step anyway, the freed slot would stay unused.
        let by_itself = matches!(groups, Groups::One(_));
        if by_itself || self.prompt_tokens(groups) < self.config.max_num_batched_tokens {
            self.make_room();
        }
        self.step += 1;
        let mut plan = self.plan(groups);
        for chunk in &plan.chunks {
            self.served.insert(chunk.group, self.step);
        }
        plan.chunks.sort_by_key(|chunk| chunk.group);
        (!plan.chunks.is_empty()).then_some(plan)
    }

    fn plan(&mut self, groups: &Groups) -> Plan {
        let mut budget = self.config.max_num_batched_tokens;
        let mut chunks = self.decode(groups, &mut budget);
        self.admit(groups, budget);
        chunks.extend(self.prefill(groups, &mut budget));
        Plan {
            groups: groups.clone(),
            chunks,
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.running.iter().chain(&self.waiting)
    }

    /// Plans one token of each running sequence of the groups whose prompt is computed.
    fn decode(&mut self, groups: &Groups, budget: &mut usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let entry = &self.running[at];
            let ready = groups.contain(entry.group) && entry.tokens - entry.computed == 1;
            if ready && self.grow_or_preempt(at) {
                chunks.push(self.running[at].take(1));
                *budget -= 1;
            }
            at += 1;
        }
        chunks
    }

    /// Allocates a block for the last token of `running[at]` if it needs one, preempting younger
    /// sequences. Returns false if it was the youngest itself and was preempted.
    fn grow_or_preempt(&mut self, at: usize) -> bool {
        let blocks = self.running[at].tokens.div_ceil(self.config.block_size);
        while !self.blocks.grow(&mut self.running[at].blocks, blocks) {
            let youngest = self.running.len() - 1;
            self.preempt(youngest);
            if at == youngest {
                return false;
            }
        }
        true
    }

    /// Moves `running[at]` back to the waiting queue, to be computed again.
    fn preempt(&mut self, at: usize) {
        let mut entry = self.running.remove(at);
        self.deallocate(&mut entry);
        self.preemptions += 1;
        let place = self.waiting.partition_point(|other| other.id < entry.id);
        self.waiting.insert(place, entry);
    }

    /// Uncomputed tokens of the groups' running sequences.
    fn prompt_tokens(&self, groups: &Groups) -> usize {
        let running = self.running.iter();
        let running = running.filter(|entry| groups.contain(entry.group));
        running.map(|entry| entry.tokens - entry.computed).sum()
    }

    /// Plans chunks of prompts until the budget is used up: the longest-waiting group first, then
    /// the oldest sequence, so that a flood of one ticket's prompts does not delay another's.
    fn prefill(&mut self, groups: &Groups, budget: &mut usize) -> Vec<Chunk> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.retain(|&at| groups.contain(self.running[at].group));
        order.sort_by_key(|&at| self.waits_since(&self.running[at]));
        let mut chunks = Vec::new();
        for at in order {
            let entry = &mut self.running[at];
            let len = (entry.tokens - entry.computed).min(*budget);
            if len > 0 {
                chunks.push(entry.take(len));
                *budget -= len;
            }
        }
        chunks
    }

    /// Start of a sequence's wait: the step in which its group was last served, or in which the
    /// sequence arrived; and its number.
    fn waits_since(&self, entry: &Entry) -> (u64, SequenceId) {
        let served = self.served.get(&entry.group).copied();
        (served.unwrap_or(entry.arrived), entry.id)
    }
}

impl Entry {
    /// Plans the next `len` tokens, and counts them as computed.
    fn take(&mut self, len: usize) -> Chunk {
        let start = self.computed;
        self.computed += len;
        Chunk {
            id: self.id,
            group: self.group,
            start,
            len,
            samples: self.computed == self.tokens,
            blocks: Arc::clone(&self.blocks),
        }
    }
}

#[cfg(test)]
mod tests;
