//! The engine: one thread that owns the scheduler, the runner and the weights. Requests come in
//! through one channel, tokens go out through one channel per request, and no other thread touches
//! the model. The thread stays inside the kernels' pool for its whole life, so that steps fork
//! within that pool.

mod account;
mod blocks;
mod constraint;
mod costs;
mod handle;
mod mode;
mod pace;
mod plan;
mod policy;
mod pooling;
mod readout;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod scores;
mod sequence;
mod spawn;
mod verification;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blocks::HashChain;
pub use constraint::{Constraint, ConstraintError, TokenMask};
use constraint::{Guide, MaskWorkers};
pub use costs::measure::{Measured, measure_costs};
pub use costs::{Costs, Load, PerTicket};
pub use handle::{
    Command, EngineHandle, EngineInbox, Limits, OutputSender, OutputStream, SendError, SubmitError,
    channel,
};
pub use mode::TicketMode;
use pace::Pace;
use plan::{Chunk, Groups, Plan, SequenceId};
use policy::Policy;
pub use pooling::Pooling;
use rayon::prelude::*;
pub use request::{
    FinishReason, GREEDY_BELOW, Output, Request, SamplingParams, SequenceError, StepResult,
    TokenLogprobs,
};
use runner::{Runner, StepFailure, StepOutput};
use scheduler::{Demand, Scheduler};
use sequence::{ChunkOutput, Sequence};
pub use spawn::{EngineThread, TURN_STEPS, spawn};
use verification::Verification;

use crate::metrics::Metrics;
use crate::model::{BLOCK, ModelError, SwapReport};
use crate::registry::Lease;

/// Limits, ticket mode and threads of the engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that hold KV blocks at once.
    pub max_num_seqs: usize,
    /// Tokens per step, over all sequences; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait, beyond `max_num_seqs`.
    pub max_queue: usize,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: usize,
    /// Share the KV blocks of common prefixes between requests, and keep them for later ones.
    pub enable_prefix_caching: bool,
    /// How tickets reach the rows that name them.
    pub ticket_mode: TicketMode,
    /// Costs that [`TicketMode::Auto`] decides by; `None` measures them at the start.
    pub costs: Option<Costs>,
    /// Compute threads.
    pub threads: usize,
    /// Launch each kernel of a step separately, and capture no CUDA graphs.
    pub enforce_eager: bool,
    /// End-of-text tokens of the base.
    pub end_tokens: Vec<u32>,
}

/// Reason why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "{tokens} tokens per step are fewer than {seqs} running sequences: a step has to hold one \
         token of each"
    )]
    Budget { tokens: usize, seqs: usize },
    #[error(
        "the KV cache of {given} bytes is smaller than one block ({BLOCK} tokens, {block} bytes)"
    )]
    Cache { given: usize, block: usize },
    #[error("tickets cannot be applied to a base that is kept quantised, only overlaid")]
    Quantized,
    #[error("threads cannot be started: {0}")]
    Threads(String),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Steps that may fail in a row before the engine gives up on the device.
const MAX_FAILED_IN_A_ROW: u32 = 16;

/// The loop that runs on the engine's thread.
struct Engine {
    runner: Runner,
    scheduler: Scheduler,
    policy: Policy,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: SequenceId,
    max_model_len: usize,
    enable_prefix_caching: bool,
    end_tokens: Vec<u32>,
    inbox: EngineInbox,
    mask_workers: MaskWorkers,
    verification: Verification,
    pace: Pace,
    /// Time of the last swap.
    last_swap: Duration,
    /// Steps that failed as a whole since the last one that did not.
    failed_in_a_row: u32,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Schedule → run → postprocess, until the engine is shut down.
    fn run(mut self) {
        while self.receive() {
            self.drop_cancelled();
            let start = Instant::now();
            if let Some(plan) = self.schedule() {
                match self.run_step(&plan) {
                    Ok(output) => {
                        self.postprocess(&plan, output.chunks);
                        let metrics = &self.metrics.engine;
                        let took = start.elapsed();
                        metrics.observe_step(plan.mode(), took, output.overlaid);
                        self.pace.record(plan.rows(), took);
                        self.scheduler.set_pace(self.pace.rows());
                    }
                    Err(failure) => self.fail_step(&plan, &failure),
                }
            } else {
                // If nothing runs, all blocks and slots are free, so some sequence fits.
                assert!(self.scheduler.is_idle(), "sequences wait and none can run");
            }
            self.report();
            self.verify_after(start.elapsed());
        }
    }

    /// Plans the next step for the groups that the policy picks; `None` if there is no work.
    fn schedule(&mut self) -> Option<Plan> {
        loop {
            self.scheduler.make_room();
            let demand = self.scheduler.demand();
            let loads: Vec<Load> = demand.iter().map(|demand| self.load(demand)).collect();
            let groups = self.policy.next(&loads)?;
            let plan = self.scheduler.schedule(&groups);
            if let Some(plan) = &plan {
                self.policy.record_step(&plan.rows_by_group());
            }
            // A group may have been preempted while it was planned; then the policy picks again.
            if plan.is_some() || groups == Groups::All {
                return plan;
            }
        }
    }

    /// Demand of a group with the size of its ticket.
    fn load(&self, demand: &Demand) -> Load {
        let (_, oldest) = demand.since;
        let ticket = self.sequences[&oldest].lease.as_ref().map(Lease::ticket);
        Load {
            group: demand.group,
            rows: demand.rows,
            urgent: demand.urgent,
            nonzeros: ticket.map_or(0, |ticket| ticket.nonzeros()),
            has_layout: ticket.is_none_or(|ticket| ticket.layout().is_some()),
        }
    }

    /// Runs a planned step on the model.
    fn run_step(&mut self, plan: &Plan) -> Result<StepOutput, StepFailure> {
        for chunk in &plan.chunks {
            let sequence = self
                .sequences
                .get_mut(&chunk.id)
                .expect("planned sequences are here");
            if let Some(waited) = sequence.first_run(chunk.start) {
                let metrics = &self.metrics.engine;
                metrics.queue_time.observe(waited);
                if self.enable_prefix_caching {
                    metrics.observe_prefix(sequence.tokens.len(), chunk.start);
                }
            }
        }
        let output = self.runner.step(plan, &self.sequences)?;
        self.scheduler.commit();
        self.failed_in_a_row = 0;
        self.count_swap(output.swap);
        for &took in &output.layout_build_times {
            self.metrics.engine.observe_overlay_build(took);
        }
        Ok(output)
    }

    /// Ends the sequences of a failed step, or only those of the ticket that failed: then the
    /// others compute the step again. Reverts to the base.
    ///
    /// # Panics
    /// The weights may be half written, or the device is beyond use.
    fn fail_step(&mut self, plan: &Plan, failure: &StepFailure) {
        let StepFailure { ticket, error } = failure;
        tracing::error!("a step failed: {error}");
        self.metrics.engine.failed_steps.inc();
        assert!(!matches!(**error, ModelError::HalfWritten(_)), "{error}");
        let reason = if error.is_out_of_memory() {
            SequenceError::OutOfMemory
        } else {
            SequenceError::StepFailed
        };
        self.failed_in_a_row += u32::from(ticket.is_none());
        assert!(
            self.failed_in_a_row < MAX_FAILED_IN_A_ROW,
            "{MAX_FAILED_IN_A_ROW} steps failed in a row, the last one because {error}"
        );
        self.scheduler.roll_back(plan);
        for chunk in &plan.chunks {
            if ticket.is_none() || chunk.group == *ticket {
                self.sequences[&chunk.id].fail(reason);
                self.remove(chunk.id);
            }
        }
        self.swap_to_base();
    }

    /// Scores and pools prompts and samples next tokens from the step's output, one sequence per
    /// core. Removes the sequences that end.
    fn postprocess(&mut self, plan: &Plan, outputs: Vec<ChunkOutput>) {
        let mut outputs: HashMap<SequenceId, (&Chunk, ChunkOutput)> = plan
            .chunks
            .iter()
            .zip(outputs)
            .filter(|(_, output)| !output.is_empty())
            .map(|(chunk, output)| (chunk.id, (chunk, output)))
            .collect();
        let work: Vec<_> = self
            .sequences
            .iter_mut()
            .filter_map(|(id, sequence)| Some((sequence, outputs.remove(id)?)))
            .collect();
        let continues: Vec<(&Chunk, bool)> = work
            .into_par_iter()
            .map(|(sequence, (chunk, output))| (chunk, sequence.step(chunk, output)))
            .collect();
        for (chunk, continues) in continues {
            if !continues {
                self.remove(chunk.id);
            } else if chunk.samples
                && let Some(sequence) = self.sequences.get_mut(&chunk.id)
            {
                let filled = sequence.filled_blocks();
                self.scheduler.extend(chunk.id, filled);
            }
        }
    }

    /// Processes all submitted commands, and waits for one if there is no other work. Returns false
    /// once the engine is shut down.
    fn receive(&mut self) -> bool {
        loop {
            let idle = self.scheduler.is_idle();
            if idle {
                // An applied ticket without requests must not keep memory that another ticket
                // needs.
                self.swap_to_base();
            }
            let command = if idle && !self.verification.is_pending() {
                match self.inbox.recv() {
                    Some(command) => command,
                    None => return false,
                }
            } else {
                match self.inbox.try_recv() {
                    Some(command) => command,
                    None if idle => {
                        self.verify(Verification::idle_slice());
                        continue;
                    }
                    None => return true,
                }
            };
            match command {
                Command::Submit {
                    request,
                    outputs,
                    arrived,
                } => {
                    let (ends, limit) = (&self.end_tokens, self.max_model_len);
                    let shares = self.enable_prefix_caching;
                    let chain = shares.then(|| HashChain::new(&request.prefix_scope()));
                    let mut request = *request;
                    let constraint = request.constraint.take();
                    let guide = constraint.map(|c| Guide::new(c, &self.mask_workers));
                    let sequence =
                        Sequence::new(request, chain, guide, outputs, arrived, ends, limit);
                    self.add(sequence);
                }
                Command::BaseDigest(answer) => self.verification.ask(answer),
                Command::Shutdown => return false,
            }
        }
    }

    /// Hashes a slice of the base if one is due after a step that took `step`.
    fn verify_after(&mut self, step: Duration) {
        if !self.verification.is_pending() {
            return;
        }
        let swap = match self.runner.is_bare() {
            true => Duration::ZERO,
            // The ticket is reverted and applied again.
            false => 2 * self.last_swap,
        };
        if let Some(slice) = self.verification.due_after(step, swap) {
            self.swap_to_base();
            self.verify(slice);
        }
    }

    /// Hashes the bare base for about `slice`.
    fn verify(&mut self, slice: Duration) {
        if let Err(error) = self.verification.advance(&self.runner, slice) {
            tracing::error!("the base cannot be verified: {error}");
        }
    }

    fn swap_to_base(&mut self) {
        let swap = self
            .runner
            .swap(None)
            .unwrap_or_else(|error| panic!("a ticket cannot be reverted: {error}"));
        self.count_swap(swap);
        self.policy.reverted();
    }

    fn count_swap(&mut self, swap: Option<SwapReport>) {
        if let Some(swap) = swap {
            self.last_swap = swap.took;
            self.metrics.engine.observe_swap(swap.took);
        }
    }

    fn add(&mut self, mut sequence: Sequence) {
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.add(sequence.queued(id));
        self.sequences.insert(id, sequence);
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.sequences.remove(&id);
    }

    fn drop_cancelled(&mut self) {
        let cancelled: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.is_cancelled())
            .map(|(&id, _)| id)
            .collect();
        cancelled.into_iter().for_each(|id| self.remove(id));
    }

    /// Updates the gauges.
    fn report(&self) {
        let scheduler = &self.scheduler;
        let metrics = &self.metrics.engine;
        metrics.requests_running.set(scheduler.num_running() as i64);
        metrics.requests_waiting.set(scheduler.num_waiting() as i64);
        metrics.kv_cache_usage.set(scheduler.cache_usage());
        metrics
            .preemptions
            .inc_by(scheduler.preemptions() - metrics.preemptions.get());
        let unread = &metrics.unread_streams_ended;
        unread.inc_by(self.inbox.unread_ended() - unread.get());
        metrics
            .prefix_cache_evictions
            .inc_by(scheduler.evictions() - metrics.prefix_cache_evictions.get());
    }
}
