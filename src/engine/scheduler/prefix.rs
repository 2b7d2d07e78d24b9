//! Prefix cache: sequences share the full blocks that they have in common.
//!
//! An admitted sequence takes the cached blocks at the start of its chain, and computes the rest.
//! It *claims* those: another sequence that would need one of them waits until it is computed,
//! instead of computing it again, unless it is the more important one. Only running sequences
//! claim, and none of them waits for a claim, so nothing deadlocks: preempting or removing a
//! sequence ends its claims.
//!
//! A block is cached by [`Scheduler::commit`], after the step that filled it has succeeded.

use super::entry::Entry;
use super::{Claim, Scheduler};
use crate::engine::blocks::BlockHash;
use crate::engine::plan::Plan;

impl Scheduler {
    /// Caches the blocks that the running sequences have filled, once the planned step has
    /// succeeded. If it fails, [`Self::roll_back`] follows instead: the blocks hold garbage.
    pub fn commit(&mut self) {
        for entry in &mut self.running {
            let full = (entry.computed / self.config.block_size).min(entry.chain.len());
            for at in entry.cached..full {
                let hash = entry.chain[at];
                self.blocks.cache(&mut entry.blocks, at, hash);
                self.claims.remove(&hash);
            }
            entry.cached = entry.cached.max(full);
        }
    }

    /// Takes back the tokens of a plan whose step failed: the sequences that remain compute them
    /// again.
    pub fn roll_back(&mut self, plan: &Plan) {
        for chunk in &plan.chunks {
            if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == chunk.id) {
                entry.computed = chunk.start;
            }
        }
    }

    /// Cached blocks that were evicted so far.
    pub fn evictions(&self) -> u64 {
        self.blocks.evictions()
    }

    /// Tokens that a waiting sequence would have to compute.
    pub(super) fn missing_tokens(&self, entry: &Entry) -> usize {
        let cached = self.blocks.cached_prefix(self.shareable(entry));
        entry.tokens - cached.blocks * self.config.block_size
    }

    /// Blocks that a waiting sequence would take from the available ones.
    pub(super) fn missing_blocks(&self, entry: &Entry) -> usize {
        let cached = self.blocks.cached_prefix(self.shareable(entry));
        entry.tokens.div_ceil(self.config.block_size) - cached.held
    }

    /// Whether a waiting sequence should go on waiting, because a running one, no less important,
    /// computes the next block that it needs.
    pub(super) fn is_deferred(&self, entry: &Entry) -> bool {
        let chain = self.shareable(entry);
        let cached = self.blocks.cached_prefix(chain).blocks;
        let next = chain.get(cached);
        let claim = next.and_then(|next| self.claims.get(next));
        claim.is_some_and(|claim| claim.priority <= entry.priority)
    }

    /// Gives a waiting sequence the blocks of all its tokens, and claims those that it will
    /// compute. Returns false if too few are available.
    pub(super) fn allocate(&mut self, entry: &mut Entry) -> bool {
        let mut table = self.blocks.share(self.shareable(entry));
        let cached = table.len();
        let blocks = entry.tokens.div_ceil(self.config.block_size);
        if !self.blocks.grow(&mut table, blocks) {
            self.blocks.release(table);
            return false;
        }
        entry.blocks = table;
        entry.cached = cached;
        entry.computed = cached * self.config.block_size;
        entry.charged = entry.charged.max(entry.computed);
        let (id, priority) = (entry.id, entry.priority);
        for &hash in &entry.chain[cached..] {
            self.claim(Claim { id, priority }, hash);
        }
        true
    }

    /// Gives back the blocks of a sequence and ends its claims.
    pub(super) fn deallocate(&mut self, entry: &mut Entry) {
        self.blocks.release(std::mem::take(&mut entry.blocks));
        for hash in &entry.chain[entry.cached..] {
            if self
                .claims
                .get(hash)
                .is_some_and(|claim| claim.id == entry.id)
            {
                self.claims.remove(hash);
            }
        }
        (entry.computed, entry.cached) = (0, 0);
    }

    /// Notes that a running sequence will compute a block, if no other one does and it is not
    /// cached.
    pub(super) fn claim(&mut self, claim: Claim, hash: BlockHash) {
        if !self.blocks.is_cached(&hash) {
            self.claims.entry(hash).or_insert(claim);
        }
    }

    /// Hashes of the blocks that a sequence need not compute itself. It computes its last token,
    /// since the next one is sampled from its logits, and those that score or pool its prompt.
    fn shareable<'a>(&self, entry: &'a Entry) -> &'a [BlockHash] {
        let tokens = entry.needed_from.min(entry.tokens - 1);
        let blocks = tokens / self.config.block_size;
        &entry.chain[..blocks.min(entry.chain.len())]
    }
}
