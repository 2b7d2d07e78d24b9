//! Allocator of KV blocks: plain data.

use std::sync::Arc;

/// Block table of a sequence: its KV blocks in the order of their positions. A plan shares the
/// table, so that planning a step copies it only if it grows while a plan still holds it.
pub type BlockTable = Arc<Vec<u32>>;

/// Hands out the blocks `0..total`.
#[derive(Debug)]
pub struct BlockAllocator {
    free: Vec<u32>,
    total: usize,
}

impl BlockAllocator {
    /// An allocator whose `total` blocks are all free.
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("fewer than 2^32 blocks");
        Self {
            // Low numbers are handed out first, so that untouched memory stays untouched.
            free: (0..last).rev().collect(),
            total,
        }
    }

    /// Number of free blocks.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Number of all blocks.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Extends a block table to `blocks` blocks. Returns false, and changes nothing, if too few
    /// are free.
    pub fn grow(&mut self, table: &mut BlockTable, blocks: usize) -> bool {
        let missing = blocks.saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        if missing > 0 {
            let taken = self.free.drain(self.free.len() - missing..).rev();
            Arc::make_mut(table).extend(taken);
        }
        true
    }

    /// Takes back all blocks of a table.
    pub fn release(&mut self, table: BlockTable) {
        self.free.extend(table.iter().rev());
        debug_assert!(self.free.len() <= self.total);
    }
}
