//! Runs a plan on the model: the only code that touches weights and KV blocks after the start.

use std::collections::HashMap;

use candle_core::Tensor;

use super::scheduler::{Plan, Scheduler, SequenceId};
use super::sequence::Sequence;
use crate::model::{BLOCK, Base, Batch, KvCache, ModelError, Span, SwapReport};
use crate::registry::Lease;
use crate::ticket::Digest;

/// The resident base with its KV blocks.
pub struct Runner {
    base: Base,
    cache: KvCache,
    /// The lease of the ticket that is applied: while its values lie in the weights, its memory is
    /// in use.
    applied: Option<Lease>,
}

/// What one step gave.
pub struct StepOutput {
    /// The next-token logits of each sampling chunk, in the plan's order.
    pub logits: Vec<Vec<f32>>,
    /// The swap that the step began with, if any.
    pub swap: Option<SwapReport>,
}

impl Runner {
    pub fn new(base: Base, blocks: usize) -> Result<Self, ModelError> {
        Ok(Self {
            cache: base.kv_cache(blocks)?,
            base,
            applied: None,
        })
    }

    /// Runs a plan under its group's ticket. (A plan of mixed groups would choose here, by cost,
    /// between applying and overlaying.)
    pub fn step(
        &mut self,
        plan: &Plan,
        scheduler: &Scheduler,
        sequences: &HashMap<SequenceId, Sequence>,
    ) -> Result<StepOutput, ModelError> {
        let lease = plan
            .chunks
            .first()
            .and_then(|chunk| sequences[&chunk.id].lease.as_ref());
        let swap = self.swap(lease)?;
        let batch = batch(plan, scheduler, sequences);
        let logits = self.base.decoder.forward(&batch, &self.cache)?;
        let logits = logits
            .as_ref()
            .map(Tensor::to_vec2)
            .transpose()?
            .unwrap_or_default();
        Ok(StepOutput { logits, swap })
    }

    /// The digest of the bare base's parameters as they are now.
    pub fn base_digest(&mut self) -> Result<Digest, ModelError> {
        self.swap(None)?;
        self.base.resident.digest()
    }

    fn swap(&mut self, lease: Option<&Lease>) -> Result<Option<SwapReport>, ModelError> {
        let report = self.base.resident.swap(lease.map(Lease::ticket), 1.0)?;
        if report.is_some() {
            self.applied = lease.cloned();
        }
        Ok(report)
    }
}

/// The rows of a plan.
fn batch(plan: &Plan, scheduler: &Scheduler, sequences: &HashMap<SequenceId, Sequence>) -> Batch {
    let mut batch = Batch::default();
    for chunk in &plan.chunks {
        let blocks = scheduler
            .block_table(chunk.id)
            .expect("a planned sequence has blocks");
        let tokens = &sequences[&chunk.id].tokens;
        let first_row = batch.tokens.len();
        for position in chunk.start..chunk.start + chunk.len {
            let slot = blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            batch.tokens.push(tokens[position]);
            batch.positions.push(position as u32);
            batch.slots.push(slot as u32);
        }
        if chunk.samples {
            batch.logits_rows.push(batch.tokens.len() as u32 - 1);
        }
        batch.spans.push(Span {
            first_row,
            rows: chunk.len,
            first_position: chunk.start,
            blocks: blocks.to_vec(),
        });
    }
    batch
}
