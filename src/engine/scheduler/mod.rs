//! Which sequences run in the next step: plain data, no tensors, no tokens, no clocks.
//!
//! Sequences that name one ticket form a group. A step runs either all groups together or one of them;
//! which, is the policy's to say, by what [`Scheduler::demand`] tells of the groups. A place that falls
//! free goes to the group with the fewest running sequences; a group that has none at all takes one
//! from the group with the most. So no ticket starves. Within a step, running sequences decode first,
//! then prompts are computed in chunks, and waiting sequences are admitted, oldest first, while the
//! token budget and the KV blocks last. Where blocks run out, the youngest running sequence is
//! preempted: it gives its blocks back and is computed again later.

use std::collections::{HashMap, VecDeque};

use super::blocks::BlockAllocator;
use super::plan::{Chunk, Group, Groups, Plan, SequenceId};

/// The limits of a step. `max_num_batched_tokens` is at least `max_num_seqs`.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Sequences that hold KV blocks at once.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// KV blocks there are.
    pub blocks: usize,
    /// Positions of one block.
    pub block_size: usize,
}

#[derive(Debug)]
struct Entry {
    id: SequenceId,
    group: Group,
    /// The step in which it arrived.
    arrived: u64,
    /// Known tokens: the prompt and what was generated.
    tokens: usize,
    /// Tokens whose keys and values are in the blocks.
    computed: usize,
    blocks: Vec<u32>,
}

/// What a group would do in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub group: Group,
    /// Since when it waits: the step in which it was last served, or its oldest sequence came; and that
    /// sequence.
    pub since: (u64, SequenceId),
    /// Tokens that it would compute in a step of its own.
    pub rows: usize,
}

/// Two queues, both in order of arrival, and the blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    blocks: BlockAllocator,
    /// The last step of each group that has sequences.
    served: HashMap<Group, u64>,
    step: u64,
    preemptions: u64,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            blocks: BlockAllocator::new(config.blocks),
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            served: HashMap::new(),
            step: 0,
            preemptions: 0,
        }
    }

    /// Queues a sequence of `tokens` known tokens. Ids rise; all blocks together hold every
    /// sequence at its longest, which the engine checks at its start.
    pub fn add(&mut self, id: SequenceId, group: Group, tokens: usize) {
        self.waiting.push_back(Entry {
            id,
            group,
            arrived: self.step,
            tokens,
            computed: 0,
            blocks: Vec::new(),
        });
    }

    /// Takes a sequence out, whether it ended or was cancelled.
    pub fn remove(&mut self, id: SequenceId) {
        let running = self.running.iter().position(|entry| entry.id == id);
        let waiting = self.waiting.iter().position(|entry| entry.id == id);
        let gone = match (running, waiting) {
            (Some(at), _) => Some(self.running.remove(at)),
            (None, Some(at)) => self.waiting.remove(at),
            (None, None) => None,
        };
        if let Some(mut entry) = gone {
            self.blocks.release(&mut entry.blocks);
            if !self.entries().any(|other| other.group == entry.group) {
                self.served.remove(&entry.group);
            }
        }
    }

    /// A token was generated for a running sequence.
    pub fn extend(&mut self, id: SequenceId) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) {
            entry.tokens += 1;
        }
    }

    /// The block table of a running sequence.
    pub fn block_table(&self, id: SequenceId) -> Option<&[u32]> {
        let entry = self.running.iter().find(|entry| entry.id == id);
        entry.map(|entry| entry.blocks.as_slice())
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Share of the KV blocks in use, 0 to 1.
    pub fn cache_usage(&self) -> f64 {
        let total = self.blocks.total();
        (total - self.blocks.free()) as f64 / total.max(1) as f64
    }

    /// Sequences preempted so far.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The groups that have something to do, those first that wait longest; none where there is nothing
    /// to do at all.
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
            add(&self.waiting[at], self.waiting[at].tokens);
        }
        let mut demands: Vec<Demand> = demands.into_values().collect();
        for demand in &mut demands {
            demand.rows = demand.rows.min(self.config.max_num_batched_tokens);
        }
        demands.sort_unstable_by_key(|demand| demand.since);
        demands
    }

    /// Plans the next step for these groups, and counts its tokens as computed; `None` where they have
    /// nothing to do, or where a group's only sequence was the youngest and had to give up its blocks.
    pub fn schedule(&mut self, groups: &Groups) -> Option<Plan> {
        // Where prompts take the whole step anyway, nobody would get the room.
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

    /// Where a group waits and nothing of it runs for want of blocks or places, the group with the
    /// most running sequences gives up its youngest, as long as it keeps one.
    fn make_room(&mut self) {
        loop {
            let running = self.running_by_group();
            let waits = |entry: &&Entry| !running.contains_key(&entry.group);
            let Some(group) = self.waiting.iter().find(waits).map(|entry| entry.group) else {
                return;
            };
            let most = running.values().copied().max().unwrap_or(0);
            if most < 2 || self.admissible(group).is_some() {
                return;
            }
            let largest = |entry: &Entry| running[&entry.group] == most;
            let youngest = self.running.iter().rposition(largest);
            self.preempt(youngest.expect("a group with the most has a youngest"));
        }
    }

    /// Sequences that run, by group.
    fn running_by_group(&self) -> HashMap<Group, usize> {
        let mut running = HashMap::new();
        for entry in &self.running {
            *running.entry(entry.group).or_default() += 1;
        }
        running
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.running.iter().chain(&self.waiting)
    }

    /// Of each group that waits: its running sequences, and the place of its oldest in the queue. The
    /// smallest goes first: groups with fewer running sequences, then those who wait longer. So a flood
    /// of one ticket does not keep the others out.
    fn oldest_waiting(&self) -> HashMap<Group, (usize, usize)> {
        let running = self.running_by_group();
        let mut oldest = HashMap::new();
        for (at, entry) in self.waiting.iter().enumerate() {
            let running = running.get(&entry.group).copied().unwrap_or(0);
            oldest.entry(entry.group).or_insert((running, at));
        }
        oldest
    }

    /// Where in the queue the group's oldest waiting sequence is, if it fits beside the oldest ones
    /// of the groups that go before: so small requests do not live off the blocks that a large one
    /// waits for.
    fn admissible(&self, group: Group) -> Option<usize> {
        let oldest = self.oldest_waiting();
        let mine = *oldest.get(&group)?;
        let before = oldest.into_values().filter(|other| *other <= mine);
        let queued: Vec<usize> = before.map(|(_, at)| at).collect();
        self.fit(&queued).then_some(mine.1)
    }

    /// Where in the queue the sequence is that goes next of these groups, if it fits.
    fn next_admissible(&self, groups: &Groups) -> Option<usize> {
        match groups {
            Groups::One(group) => self.admissible(*group),
            Groups::All => {
                let (_, at) = self.oldest_waiting().into_values().min()?;
                self.fit(&[at]).then_some(at)
            }
            Groups::AllBut(_) => {
                let oldest = self.oldest_waiting().into_iter();
                let oldest = oldest.filter(|(group, _)| groups.contain(*group));
                let (group, _) = oldest.min_by_key(|(_, place)| *place)?;
                self.admissible(group)
            }
        }
    }

    /// Where in the queue the oldest sequences of the groups are that are [`Self::admissible`].
    fn oldest_admissible(&self) -> Vec<usize> {
        let mut queued: Vec<(usize, usize)> = self.oldest_waiting().into_values().collect();
        queued.sort_unstable();
        let queued: Vec<usize> = queued.into_iter().map(|(_, at)| at).collect();
        let fitting = (1..=queued.len()).take_while(|&n| self.fit(&queued[..n]));
        queued[..fitting.count()].to_vec()
    }

    /// Whether all of these in the queue find blocks and places.
    fn fit(&self, queued: &[usize]) -> bool {
        let needed = |&at: &usize| self.waiting[at].tokens.div_ceil(self.config.block_size);
        let blocks: usize = queued.iter().map(needed).sum();
        let sequences = self.running.len() + queued.len();
        blocks <= self.blocks.free() && sequences <= self.config.max_num_seqs
    }

    /// One token for each running sequence of the groups whose prompt is computed.
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

    /// Makes room for the last token of `running[at]`, at the cost of younger sequences; false if
    /// it was itself the youngest and had to go.
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

    /// Sends `running[at]` back to the queue, to be computed again.
    fn preempt(&mut self, at: usize) {
        let mut entry = self.running.remove(at);
        self.blocks.release(&mut entry.blocks);
        entry.computed = 0;
        self.preemptions += 1;
        let place = self.waiting.partition_point(|other| other.id < entry.id);
        self.waiting.insert(place, entry);
    }

    /// Moves waiting sequences of the groups to the running ones, with blocks for all their tokens,
    /// as long as tokens of the budget are left for them.
    fn admit(&mut self, groups: &Groups, budget: usize) {
        let mut pending = self.prompt_tokens(groups);
        while pending < budget {
            let Some(at) = self.next_admissible(groups) else {
                return;
            };
            let mut entry = self.waiting.remove(at).expect("admissible is in the queue");
            let blocks = entry.tokens.div_ceil(self.config.block_size);
            let fits = self.blocks.grow(&mut entry.blocks, blocks);
            debug_assert!(fits, "admissible checked the blocks");
            pending += entry.tokens;
            let place = self.running.partition_point(|other| other.id < entry.id);
            self.running.insert(place, entry);
        }
    }

    /// Tokens of running sequences of the groups that are not computed yet.
    fn prompt_tokens(&self, groups: &Groups) -> usize {
        let running = self.running.iter();
        let running = running.filter(|entry| groups.contain(entry.group));
        running.map(|entry| entry.tokens - entry.computed).sum()
    }

    /// Chunks of prompts as long as the budget lasts: first those of the group that was not served for
    /// longest, then the oldest. So a flood of one ticket's prompts does not hold up another's.
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

    /// The step in which a sequence's group was last served, or the sequence came; and its number.
    fn waits_since(&self, entry: &Entry) -> (u64, SequenceId) {
        let served = self.served.get(&entry.group).copied();
        (served.unwrap_or(entry.arrived), entry.id)
    }
}

impl Entry {
    /// The next `len` tokens, counted as computed.
    fn take(&mut self, len: usize) -> Chunk {
        let start = self.computed;
        self.computed += len;
        Chunk {
            id: self.id,
            group: self.group,
            start,
            len,
            samples: self.computed == self.tokens,
        }
    }
}

#[cfg(test)]
mod tests;
