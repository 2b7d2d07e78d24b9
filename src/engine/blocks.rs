//! Which KV blocks are free: plain data.

/// Hands out the blocks `0..total`.
#[derive(Debug)]
pub struct BlockAllocator {
    free: Vec<u32>,
    total: usize,
}

impl BlockAllocator {
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("fewer than 2^32 blocks");
        Self {
            // Low numbers are handed out first, so that untouched memory stays untouched.
            free: (0..last).rev().collect(),
            total,
        }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Extends a block table to `blocks` blocks; leaves it as it is and returns false where there
    /// are too few.
    pub fn grow(&mut self, table: &mut Vec<u32>, blocks: usize) -> bool {
        let more = blocks.saturating_sub(table.len());
        if more > self.free.len() {
            return false;
        }
        table.extend(self.free.drain(self.free.len() - more..).rev());
        true
    }

    /// Takes all blocks of a table back.
    pub fn release(&mut self, table: &mut Vec<u32>) {
        self.free.extend(table.drain(..).rev());
        debug_assert!(self.free.len() <= self.total);
    }
}
