//! A sequence in one of the scheduler's queues.

use std::sync::Arc;

use crate::engine::account::Account;
use crate::engine::blocks::{BlockHash, BlockTable};
use crate::engine::plan::{Chunk, Group, SequenceId};

/// A sequence that joins the queue.
#[derive(Debug, Default)]
pub struct NewSequence {
    /// Its number; they ascend.
    pub id: SequenceId,
    /// Its group.
    pub group: Group,
    /// Party that it is counted for.
    pub account: Account,
    /// Order among the sequences of its account: lower first.
    pub priority: i32,
    /// Known tokens, at least one.
    pub tokens: usize,
    /// Hashes of the full blocks of those tokens; empty if it shares no blocks.
    pub chain: Vec<BlockHash>,
    /// Position of the first token whose row scores or pools the prompt; `usize::MAX` if none
    /// does.
    pub needed_from: usize,
}

/// A sequence in one of the queues.
#[derive(Debug)]
pub struct Entry {
    pub id: SequenceId,
    pub group: Group,
    pub account: Account,
    pub priority: i32,
    /// The step in which it arrived.
    pub arrived: u64,
    /// The step in which it last decoded or ended its prompt.
    pub decoded: u64,
    /// Known tokens: the prompt and the generated ones.
    pub tokens: usize,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens whose keys and values are in the blocks, or will be after the planned step.
    pub computed: usize,
    /// Tokens computed plus tokens generated that its account was charged for, or that were cached.
    pub charged: usize,
    /// Empty while the sequence waits.
    pub blocks: BlockTable,
    /// Hashes of the full blocks of the known tokens.
    pub chain: Vec<BlockHash>,
    /// Blocks at the start of the table that are cached, so that this sequence never writes them.
    pub cached: usize,
    /// As in [`NewSequence`], until the prompt has been computed.
    pub needed_from: usize,
}

impl Entry {
    /// A sequence that arrives in step `step`.
    pub fn new(sequence: NewSequence, step: u64) -> Self {
        Self {
            id: sequence.id,
            group: sequence.group,
            account: sequence.account,
            priority: sequence.priority,
            arrived: step,
            decoded: step,
            tokens: sequence.tokens,
            prompt: sequence.tokens,
            computed: 0,
            charged: 0,
            blocks: BlockTable::default(),
            chain: sequence.chain,
            cached: 0,
            needed_from: sequence.needed_from,
        }
    }

    /// Known tokens that are not computed.
    pub fn uncomputed(&self) -> usize {
        self.tokens - self.computed
    }

    /// Whether it has generated no token.
    pub fn awaits_first_token(&self) -> bool {
        self.tokens == self.prompt
    }

    /// Plans the next `len` tokens, and counts them as computed.
    pub fn take(&mut self, len: usize) -> Chunk {
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

    /// Counts what the planned chunks compute and generate as charged. Returns how much of it was
    /// not yet: what is computed again costs nothing.
    pub fn charge(&mut self) -> usize {
        let samples = usize::from(self.computed == self.tokens);
        let served = self.computed + self.tokens - self.prompt + samples;
        let uncharged = served.saturating_sub(self.charged);
        self.charged += uncharged;
        uncharged
    }
}
