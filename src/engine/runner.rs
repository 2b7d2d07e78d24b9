//! Runner: executes a plan on the model. After startup, only this code touches weights and KV
//! blocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::costs::measure::{Measured, measure_costs};
use super::plan::{Chunk, Groups, Plan, SequenceId};
use super::readout::Readout;
use super::sequence::{ChunkOutput, Sequence};
use crate::kernels::step::graphs::Graphs;
use crate::model::{Base, Batch, KvCache, ModelError, SlicedDigest, SwapReport, TicketLayout};
use crate::registry::Lease;
use crate::ticket::Digest;

/// The resident base with its KV blocks.
pub struct Runner {
    base: Base,
    cache: KvCache,
    graphs: Graphs,
    /// Lease of the applied ticket; keeps it in memory while its values are in the weights.
    applied: Option<Lease>,
}

/// Outcome of one step.
pub struct StepOutput {
    /// Output of each chunk of the plan, in its order.
    pub chunks: Vec<ChunkOutput>,
    /// The swap at the start of the step, if there was one.
    pub swap: Option<SwapReport>,
    /// Nonzeros of the tickets that were overlaid on rows of the step.
    pub overlaid: usize,
    /// Time of each layout that was built for a ticket's first overlay.
    pub layout_build_times: Vec<Duration>,
}

/// Failure of a step, which computed nothing.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct StepFailure {
    /// The ticket that could not be applied or laid out; `None` if the step failed as a whole.
    pub ticket: Option<Digest>,
    pub error: Box<ModelError>,
}

impl StepFailure {
    /// An adapter for `map_err`: the failure of this ticket.
    fn of(ticket: Option<&Lease>) -> impl FnOnce(ModelError) -> Self {
        let ticket = ticket.map(|lease| lease.ticket().digest());
        move |error| Self {
            ticket,
            error: Box::new(error),
        }
    }
}

impl From<ModelError> for StepFailure {
    fn from(error: ModelError) -> Self {
        Self::of(None)(error)
    }
}

impl Runner {
    /// Allocates a KV cache of `blocks` blocks. Unless `enforce_eager`, a GPU captures decoding
    /// steps as CUDA graphs.
    ///
    /// # Errors
    /// The device has no room for the cache.
    pub fn new(base: Base, blocks: usize, enforce_eager: bool) -> Result<Self, ModelError> {
        Ok(Self {
            cache: base.kv_cache(blocks)?,
            graphs: if enforce_eager {
                Graphs::eager(base.device())
            } else {
                Graphs::new(base.device())
            },
            base,
            applied: None,
        })
    }

    /// Measures the costs of steps and tickets on this base.
    ///
    /// # Errors
    /// As [`measure_costs`].
    pub fn measure_costs(&mut self) -> Result<Measured, ModelError> {
        measure_costs(&mut self.base, &mut self.graphs)
    }

    /// Runs a plan. A single group runs with its ticket applied; several groups run on the bare
    /// base, each ticket overlaid on its rows.
    ///
    /// # Errors
    /// A ticket belongs to another base, or the device has no memory for the step.
    pub fn step(
        &mut self,
        plan: &Plan,
        sequences: &HashMap<SequenceId, Sequence>,
    ) -> Result<StepOutput, StepFailure> {
        let lease = |chunk: &Chunk| sequences[&chunk.id].lease.as_ref();
        let applies = matches!(plan.groups, Groups::One(_));
        let ticket = plan.chunks.first().and_then(lease).filter(|_| applies);
        let swap = self.swap(ticket).map_err(StepFailure::of(ticket))?;
        let (mut batch, mut readout) = (Batch::default(), Readout::default());
        let mut layout_build_times = Vec::new();
        for chunk in &plan.chunks {
            let sequence = &sequences[&chunk.id];
            push(&mut batch, chunk, sequence);
            readout.push(chunk, sequence);
            if let Some(lease) = lease(chunk).filter(|_| !applies) {
                let layout = self.layout(lease, &mut layout_build_times);
                batch.overlay(layout.map_err(StepFailure::of(Some(lease)))?);
            }
        }
        let overlaid = batch.overlaid.iter().map(|part| part.ticket.nonzeros());
        let overlaid = overlaid.sum();
        let decoder = &self.base.decoder;
        let rows = decoder.run(&batch, &self.cache, &mut self.graphs);
        let rows = rows.map_err(ModelError::from)?;
        Ok(StepOutput {
            chunks: readout.read(&rows)?,
            swap,
            overlaid,
            layout_build_times,
        })
    }

    /// The layout of a leased ticket, kept with the ticket. Building it adds its time to
    /// `layout_build_times`.
    fn layout<'a>(
        &self,
        lease: &'a Lease,
        layout_build_times: &mut Vec<Duration>,
    ) -> Result<&'a Arc<TicketLayout>, ModelError> {
        lease.ticket().layout_or_build(|ticket| {
            let start = Instant::now();
            let layout = self.base.lay_out(ticket)?;
            layout_build_times.push(start.elapsed());
            Ok(layout)
        })
    }

    /// Hashes the next pieces of the resident parameters; see [`SlicedDigest::advance`].
    ///
    /// # Errors
    /// They cannot be read from the device.
    pub fn advance_digest(&self, digest: &mut SlicedDigest) -> Result<Option<Digest>, ModelError> {
        digest.advance(&self.base.resident)
    }

    /// Whether no ticket is applied.
    pub fn is_bare(&self) -> bool {
        self.base.resident.applied().is_none()
    }

    /// Applies the leased ticket, after reverting the one that was applied; `None` restores the
    /// bare base.
    ///
    /// # Errors
    /// As [`Resident::swap`](crate::model::Resident::swap).
    pub fn swap(&mut self, lease: Option<&Lease>) -> Result<Option<SwapReport>, ModelError> {
        let report = self.base.resident.swap(lease.map(Lease::ticket), 1.0)?;
        if report.is_some() {
            self.applied = lease.cloned();
        }
        Ok(report)
    }
}

/// Appends the rows of a chunk to the batch.
fn push(batch: &mut Batch, chunk: &Chunk, sequence: &Sequence) {
    // Scored rows go before the chunk's last row, so that `logits_rows` ascends: the row that
    // samples scores no token of the prompt.
    let first = batch.tokens.len();
    let scored = sequence.scored_by(chunk).iter();
    let scored = scored.map(|position| (first + position - 1 - chunk.start) as u32);
    batch.logits_rows.extend(scored);
    let pooled = sequence.pooled_by(chunk);
    let pooled = pooled.map(|position| (first + position - chunk.start) as u32);
    batch.hidden_rows.extend(pooled);
    let tokens = &sequence.tokens[chunk.start..chunk.start + chunk.len];
    let samples = sequence.samples(chunk);
    batch.push(tokens, chunk.start, &chunk.blocks, samples);
}
