//! Runs a plan on the model: the only code that touches weights and KV blocks after the start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::costs::measure::{Measured, measure_costs};
use super::plan::{Chunk, Groups, Plan, SequenceId};
use super::scheduler::Scheduler;
use super::sequence::{ChunkOutput, Next, Sequence};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::sample::sample;
use crate::kernels::step::graphs::Graphs;
use crate::kernels::step::indices::Indices;
use crate::model::{Base, Batch, KvCache, ModelError, SwapReport, TicketOverlay};
use crate::registry::Lease;
use crate::ticket::Digest;

/// The resident base with its KV blocks.
pub struct Runner {
    base: Base,
    cache: KvCache,
    graphs: Graphs,
    /// The lease of the ticket that is applied: while its values lie in the weights, its memory is
    /// in use.
    applied: Option<Lease>,
}

/// What one step gave.
pub struct StepOutput {
    /// What each chunk of the plan gives, in its order.
    pub chunks: Vec<ChunkOutput>,
    /// The swap that the step began with, if any.
    pub swap: Option<SwapReport>,
    /// Nonzeros of the tickets that were laid over rows of the step.
    pub overlaid: usize,
    /// What it took to lay out the tickets that were overlaid for the first time, one by one.
    pub laid_out: Vec<Duration>,
}

impl Runner {
    /// Takes blocks of keys and values; where it is not eager, decoding steps are captured on a GPU.
    pub fn new(base: Base, blocks: usize, enforce_eager: bool) -> Result<Self, ModelError> {
        Ok(Self {
            cache: base.kv_cache(blocks)?,
            graphs: match enforce_eager {
                true => Graphs::eager(base.device()),
                false => Graphs::new(base.device()),
            },
            base,
            applied: None,
        })
    }

    /// What steps and tickets cost on this base.
    pub fn measure_costs(&mut self) -> Result<Measured, ModelError> {
        measure_costs(&mut self.base, &mut self.graphs)
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
        let decoder = &self.base.decoder;
        let logits = decoder.forward_captured(&batch, &self.cache, &mut self.graphs)?;
        let chunks = match logits {
            Some(logits) => read(plan, sequences, &logits)?,
            None => plan.chunks.iter().map(|_| ChunkOutput::default()).collect(),
        };
        Ok(StepOutput {
            chunks,
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
        lease.ticket().derived(|ticket| {
            let start = Instant::now();
            let overlay = self.base.lay_out(ticket)?;
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

/// Reads what the chunks want of the logits `[rows, vocab]`: whole rows, or the chosen token alone where that is
/// enough, so that no more than that is copied from where the base is.
fn read(
    plan: &Plan,
    sequences: &HashMap<SequenceId, Sequence>,
    logits: &Tensor,
) -> Result<Vec<ChunkOutput>, ModelError> {
    let (mut whole, mut choices, mut row) = (Vec::new(), Vec::new(), 0);
    for chunk in &plan.chunks {
        let sequence = &sequences[&chunk.id];
        let scored = sequence.scored_by(chunk).len() as u32;
        whole.extend(row..row + scored);
        row += scored;
        if chunk.samples {
            match sequence.sampling_method() {
                Some(choice) => choices.push((row, choice)),
                None => whole.push(row),
            }
            row += 1;
        }
    }
    let tokens = match choices.len() {
        0 => Vec::new(),
        _ => sample(logits, &choices)?,
    };
    let rows = match whole.len() {
        0 => Vec::new(),
        all if all == row as usize => logits.to_vec2()?,
        _ => gather_rows(logits, &Indices::uploaded(&whole, logits.device())?)?.to_vec2()?,
    };
    let (mut rows, mut tokens) = (rows.into_iter(), tokens.into_iter());
    let outputs = plan.chunks.iter().map(|chunk| {
        let sequence = &sequences[&chunk.id];
        let scored = rows.by_ref().take(sequence.scored_by(chunk).len());
        let scored = scored.collect();
        let next = match chunk.samples {
            true if sequence.sampling_method().is_some() => tokens.next().map(Next::Token),
            true => rows.next().map(Next::Logits),
            false => None,
        };
        ChunkOutput { scored, next }
    });
    Ok(outputs.collect())
}

/// Whether the ticket can be overlaid as it is, or has to be laid out first.
pub fn is_laid_out(lease: &Lease) -> bool {
    lease.ticket().has_derived()
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
