//! Allocator of KV blocks, which caches full blocks by their hash and shares them: plain data.
//!
//! A block is free (never cached, in no table), private (in one table, which alone may write
//! it), or cached (full, found by its hash, in any number of tables, and written by none). A cached
//! block in no table is kept until a table needs a block and none is free; the least recently used
//! goes first.
//!
//! A table with a cached block also has the blocks before it in the chain, and returns its blocks
//! from the last to the first. So a cached block goes only after all that follow it, and the
//! cached blocks of a chain are always its first ones, as are those in a table: lookups bisect.

mod hash;
mod lru;

use std::collections::HashMap;
use std::sync::Arc;

pub use hash::{BlockHash, HashChain, PrefixScope};
use lru::LruQueue;

/// Block table of a sequence: its KV blocks in the order of their positions. A plan shares the
/// table, so that planning a step copies it only if it grows while a plan still holds it.
pub type BlockTable = Arc<Vec<u32>>;

/// The blocks at the start of a chain that are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPrefix {
    /// Number of cached blocks.
    pub blocks: usize,
    /// How many of them are in some table, so that sharing them takes no free block.
    pub held: usize,
}

/// Hands out the blocks `0..total`.
#[derive(Debug)]
pub struct BlockAllocator {
    free: Vec<u32>,
    /// Number of tables that hold each block.
    holders: Vec<u32>,
    /// Hash of each cached block.
    hashes: Vec<Option<BlockHash>>,
    cached: HashMap<BlockHash, u32>,
    /// Cached blocks in no table.
    evictable: LruQueue,
    evictions: u64,
}

impl BlockAllocator {
    /// An allocator whose `total` blocks are all free.
    pub fn new(total: usize) -> Self {
        let count = u32::try_from(total).expect("fewer than 2^32 blocks");
        Self {
            // Low numbers are handed out first, so that untouched memory stays untouched.
            free: (0..count).rev().collect(),
            holders: vec![0; total],
            hashes: vec![None; total],
            cached: HashMap::new(),
            evictable: LruQueue::new(count),
            evictions: 0,
        }
    }

    /// Number of blocks in no table: the free ones, and the cached ones that may be evicted.
    pub fn available(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Number of all blocks.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Cached blocks that were evicted so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Whether a block with this hash is cached.
    pub fn is_cached(&self, hash: &BlockHash) -> bool {
        self.cached.contains_key(hash)
    }

    /// The cached blocks at the start of a chain.
    pub fn cached_prefix(&self, chain: &[BlockHash]) -> CachedPrefix {
        let blocks = chain.partition_point(|hash| self.is_cached(hash));
        let held = |hash: &BlockHash| self.holders[self.cached[hash] as usize] > 0;
        CachedPrefix {
            blocks,
            held: chain[..blocks].partition_point(held),
        }
    }

    /// A table of the cached blocks at the start of a chain.
    pub fn share(&mut self, chain: &[BlockHash]) -> BlockTable {
        let hits = chain
            .iter()
            .map_while(|hash| self.cached.get(hash).copied());
        let hits: Vec<u32> = hits.collect();
        hits.iter().for_each(|&block| self.hold(block));
        Arc::new(hits)
    }

    /// Extends a block table to `blocks` blocks, evicting cached blocks if none is free. Returns
    /// false, and changes nothing, if too few are available.
    pub fn grow(&mut self, table: &mut BlockTable, blocks: usize) -> bool {
        let missing = blocks.saturating_sub(table.len());
        if missing > self.available() {
            return false;
        }
        if missing > 0 {
            let taken: Vec<u32> = (0..missing).map_while(|_| self.take()).collect();
            Arc::make_mut(table).extend(taken);
        }
        true
    }

    /// Caches the full block at index `at` of a table, whose blocks before it are cached. If a
    /// block with this hash is cached already, the table takes that one instead of its own.
    pub fn cache(&mut self, table: &mut BlockTable, at: usize, hash: BlockHash) {
        let own = table[at];
        match self.cached.get(&hash).copied() {
            None => {
                self.cached.insert(hash, own);
                self.hashes[own as usize] = Some(hash);
            }
            Some(cached) if cached == own => {}
            Some(cached) => {
                self.hold(cached);
                Arc::make_mut(table)[at] = cached;
                self.give_back(own);
            }
        }
    }

    /// Takes back all blocks of a table; the cached ones stay cached.
    pub fn release(&mut self, table: BlockTable) {
        table.iter().rev().for_each(|&block| self.give_back(block));
    }

    /// A private block; `None` if all blocks are in tables.
    fn take(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.evict()?,
        };
        self.holders[block as usize] = 1;
        Some(block)
    }

    /// Forgets the least recently used cached block that is in no table.
    fn evict(&mut self) -> Option<u32> {
        let block = self.evictable.pop()?;
        if let Some(hash) = self.hashes[block as usize].take() {
            self.cached.remove(&hash);
        }
        self.evictions += 1;
        Some(block)
    }

    /// Counts a table that holds a cached block.
    fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.evictable.remove(block);
        }
        *holders += 1;
    }

    /// Counts a table less that holds a block.
    fn give_back(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        match (*holders, &self.hashes[block as usize]) {
            (0, Some(_)) => self.evictable.push(block),
            (0, None) => self.free.push(block),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
