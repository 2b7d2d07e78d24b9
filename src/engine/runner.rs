//! Runs a plan on the model: the only code that touches weights and KV blocks after the start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::calibration::{Measured, measure_costs};
use super::plan::{Chunk, Groups, Plan, SequenceId};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use crate::model::{Base, Batch, KvCache, ModelError, SwapReport, TicketOverlay};
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
    /// Nonzeros of the tickets that were laid over rows of the step.
    pub overlaid: usize,
    /// What it took to lay out the tickets that were overlaid for the first time, one by one.
    pub laid_out: Vec<Duration>,
}

impl Runner {
    pub fn new(base: Base, blocks: usize) -> Result<Self, ModelError> {
        Ok(Self {
            cache: base.kv_cache(blocks)?,
            base,
            applied: None,
        })
    }

    /// What steps and tickets cost on this base.
    pub fn measure_costs(&mut self) -> Result<Measured, ModelError> {
        measure_costs(&mut self.base)
    }

    /// Runs a plan: one of a single group with its ticket applied, one of several with each row's ticket
    /// laid over the bare base.
    pub fn step(
        &mut self,
        plan: &Plan,
        scheduler: &Scheduler,
        sequences: &HashMap<SequenceId, Sequence>,
    ) -> Result<StepOutput, ModelError> {
        let lease = |chunk: &Chunk| sequences[&chunk.id].lease.as_ref();
        let applies = matches!(plan.groups, Groups::One(_));
        let ticket = plan.chunks.first().and_then(lease);
        let swap = self.swap(ticket.filter(|_| applies))?;
        let mut batch = Batch::default();
        let mut laid_out = Vec::new();
        for chunk in &plan.chunks {
            push(&mut batch, chunk, scheduler, &sequences[&chunk.id]);
            if let Some(lease) = lease(chunk).filter(|_| !applies) {
                batch.overlay(&self.overlay(lease, &mut laid_out)?);
            }
        }
        let overlaid = batch.overlaid.iter().map(|over| over.ticket.nonzeros());
        let overlaid = overlaid.sum();
        let logits = self.base.decoder.forward(&batch, &self.cache)?;
        let rows = logits.as_ref().map(Tensor::to_vec2).transpose()?;
        let mut rows = rows.unwrap_or_default().into_iter();
        let logits = plan.chunks.iter().map(|chunk| {
            let scored = sequences[&chunk.id].scored_by(chunk).len();
            let wanted = scored + usize::from(chunk.samples);
            rows.by_ref().take(wanted).collect()
        });
        let logits = logits.collect();
        Ok(StepOutput {
            logits,
            swap,
            overlaid,
            laid_out,
        })
    }

    /// The leased ticket as the decoder lays it over rows: made once, and kept with the ticket.
    fn overlay(
        &self,
        lease: &Lease,
        laid_out: &mut Vec<Duration>,
    ) -> Result<Arc<TicketOverlay>, ModelError> {
        lease.derived(|ticket| {
            let start = Instant::now();
            let overlay = TicketOverlay::new(ticket, &self.base.manifest)?;
            laid_out.push(start.elapsed());
            Ok(overlay)
        })
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

/// Whether the ticket can be overlaid as it is, or has to be laid out first.
pub fn is_laid_out(lease: &Lease) -> bool {
    lease.has_derived()
}

/// Appends a chunk's rows.
fn push(batch: &mut Batch, chunk: &Chunk, scheduler: &Scheduler, sequence: &Sequence) {
    let blocks = scheduler.block_table(chunk.id);
    let blocks = blocks.expect("a planned sequence has blocks");
    // Before the chunk's last row, so that they ascend: what scores a prompt's token never samples.
    let first = batch.tokens.len();
    let scored = sequence.scored_by(chunk).iter();
    let scored = scored.map(|position| (first + position - 1 - chunk.start) as u32);
    batch.logits_rows.extend(scored);
    let tokens = &sequence.tokens[chunk.start..chunk.start + chunk.len];
    batch.push(tokens, chunk.start, blocks, chunk.samples);
}
