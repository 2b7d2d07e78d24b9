//! Admission: picks the waiting sequence that runs next, and the running one that is preempted for
//! it.

use std::collections::HashMap;

use super::{Entry, Scheduler};
use crate::engine::plan::{Group, Groups};

impl Scheduler {
    /// Moves waiting sequences of the groups to the running queue, with blocks for all their
    /// tokens, until the token budget is used up.
    pub(super) fn admit(&mut self, groups: &Groups, budget: usize) {
        let mut pending = self.prompt_tokens(groups);
        while pending < budget {
            let Some(at) = self.next_admissible(groups) else {
                return;
            };
            let mut entry = self.waiting.remove(at).expect("admissible is in the queue");
            let fits = self.allocate(&mut entry);
            debug_assert!(fits, "admissible checked the blocks");
            pending += entry.tokens - entry.computed;
            let place = self.running.partition_point(|other| other.id < entry.id);
            self.running.insert(place, entry);
        }
    }

    /// Preempts for groups that wait and cannot run at all for lack of blocks or slots: preempts
    /// the youngest sequence of the group with the most running ones, unless it is the group's
    /// last.
    pub(super) fn make_room(&mut self) {
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

    /// Number of running sequences of each group.
    fn running_by_group(&self) -> HashMap<Group, usize> {
        let mut running = HashMap::new();
        for entry in &self.running {
            *running.entry(entry.group).or_default() += 1;
        }
        running
    }

    /// For each waiting group, the number of its running sequences and the queue index of its
    /// oldest waiting one that no running one computes a block for. The smallest pair is admitted
    /// first: groups with fewer running sequences, then those that wait longer, so that a flood of
    /// one ticket does not block others.
    fn oldest_waiting(&self) -> HashMap<Group, (usize, usize)> {
        let running = self.running_by_group();
        let mut oldest = HashMap::new();
        for (at, entry) in self.waiting.iter().enumerate() {
            if oldest.contains_key(&entry.group) || self.is_deferred(entry) {
                continue;
            }
            let running = running.get(&entry.group).copied().unwrap_or(0);
            oldest.insert(entry.group, (running, at));
        }
        oldest
    }

    /// Queue index of the group's oldest waiting sequence, if it fits beside the oldest ones of the
    /// groups that are admitted before it, so that small requests do not use up the blocks that a
    /// large one waits for.
    fn admissible(&self, group: Group) -> Option<usize> {
        let oldest = self.oldest_waiting();
        let mine = *oldest.get(&group)?;
        let before = oldest.into_values().filter(|other| *other <= mine);
        let queued: Vec<usize> = before.map(|(_, at)| at).collect();
        self.fit(&queued).then_some(mine.1)
    }

    /// Queue index of the sequence of these groups that is admitted next, if it fits.
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

    /// Queue indices of the groups' oldest sequences that are [`Self::admissible`].
    pub(super) fn oldest_admissible(&self) -> Vec<usize> {
        let mut queued: Vec<(usize, usize)> = self.oldest_waiting().into_values().collect();
        queued.sort_unstable();
        let queued: Vec<usize> = queued.into_iter().map(|(_, at)| at).collect();
        let fitting = (1..=queued.len()).take_while(|&n| self.fit(&queued[..n]));
        queued[..fitting.count()].to_vec()
    }

    /// Whether there are blocks and slots for all these queue indices together.
    fn fit(&self, queued: &[usize]) -> bool {
        let needed = |&at: &usize| self.missing_blocks(&self.waiting[at]);
        let blocks: usize = queued.iter().map(needed).sum();
        let sequences = self.running.len() + queued.len();
        blocks <= self.blocks.available() && sequences <= self.config.max_num_seqs
    }
}
