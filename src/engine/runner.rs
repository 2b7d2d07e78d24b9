//! Runs a plan on the model: the only code that touches weights and KV blocks after the start.

use std::collections::HashMap;

use candle_core::Tensor;

use super::scheduler::{Plan, Scheduler, SequenceId};
use super::sequence::Sequence;
use crate::model::{Base, Batch, KvCache, ModelError, SwapReport};
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
    /// The rows of logits that each chunk of the plan wants, in its order: see [`Sequence::step`].
    pub logits: Vec<Vec<Vec<f32>>>,
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
        let rows = logits.as_ref().map(Tensor::to_vec2).transpose()?;
        let mut rows = rows.unwrap_or_default().into_iter();
        let logits = plan.chunks.iter().map(|chunk| {
            let scored = sequences[&chunk.id].scored_by(chunk).len();
            let wanted = scored + usize::from(chunk.samples);
            rows.by_ref().take(wanted).collect()
        });
        let logits = logits.collect();
        Ok(StepOutput { logits, swap })
    }

    /// The digest of the resident parameters as they are now.
    pub fn digest(&self) -> Result<Digest, ModelError> {
        self.base.resident.digest()
    }

    /// Makes the lease's ticket the one that is applied; `None` is the bare base.
    pub fn swap(&mut self, lease: Option<&Lease>) -> Result<Option<SwapReport>, ModelError> {
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
        let blocks = scheduler.block_table(chunk.id);
        let blocks = blocks.expect("a planned sequence has blocks");
        let sequence = &sequences[&chunk.id];
        // Before the chunk's last row, so that they ascend: what scores a prompt's token never samples.
        let first = batch.tokens.len();
        let scored = sequence.scored_by(chunk).iter();
        let scored = scored.map(|position| (first + position - 1 - chunk.start) as u32);
        batch.logits_rows.extend(scored);
        let tokens = &sequence.tokens[chunk.start..chunk.start + chunk.len];
        batch.push(tokens, chunk.start, blocks, chunk.samples);
    }
    batch
}
