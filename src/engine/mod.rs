//! The engine: one thread that owns scheduler, runner and weights. Requests come in by one channel,
//! tokens go out by one channel a request, and nobody else touches the model. (It lends itself to the
//! kernels' pool for its whole life, so that a step forks from inside that pool.)

mod blocks;
mod costs;
mod handle;
mod mode;
mod plan;
mod policy;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod scores;
mod sequence;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

pub use costs::measure::{Measured, measure_costs};
pub use costs::{Costs, PerTicket};
pub use handle::{Command, EngineHandle, EngineInbox, Limits, OutputStream, SubmitError, channel};
pub use mode::TicketMode;
use plan::{Chunk, Groups, Plan, SequenceId};
pub use policy::Load;
use policy::{ByCost, Policy, TurnLimits, Turns};
use rayon::prelude::*;
pub use request::{
    FinishReason, GREEDY_BELOW, Output, Request, SamplingParams, SequenceError, StepResult,
    TokenLogprobs,
};
use runner::Runner;
use scheduler::{Demand, Scheduler, SchedulerConfig};
use sequence::{ChunkOutput, Sequence};

use crate::kernels;
use crate::metrics::Metrics;
use crate::model::{BLOCK, Base, ModelError, SwapReport};

/// How the engine uses the machine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens of one step, over all sequences; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Requests that wait beyond those that run.
    pub max_queue: usize,
    /// Bytes of keys and values.
    pub kv_cache_bytes: usize,
    /// How tickets reach the rows that name them.
    pub ticket_mode: TicketMode,
    /// What [`TicketMode::Auto`] decides by; measured at the start where it is `None`.
    pub costs: Option<Costs>,
    /// Threads that compute.
    pub threads: usize,
    /// Launches every kernel of a step by itself: nothing is captured as a CUDA graph.
    pub enforce_eager: bool,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
}

/// Steps that a ticket keeps its turn while others wait: a swap costs less than one step, so it
/// adds little, and a newcomer waits for no more than these.
pub const TURN_STEPS: usize = 8;

/// Alternatives a token that a request may ask for.
const MAX_LOGPROBS: usize = 20;

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "{tokens} tokens per step are fewer than {seqs} running sequences: a step has to hold one \
         token of each"
    )]
    Budget { tokens: usize, seqs: usize },
    #[error("{given} bytes of KV cache hold no block of {BLOCK} tokens, which takes {block} bytes")]
    Cache { given: usize, block: usize },
    #[error("tickets cannot be applied to a base that is kept quantised, only overlaid")]
    Quantized,
    #[error("threads cannot be started: {0}")]
    Threads(String),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The engine's thread; joined when dropped.
pub struct EngineThread {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked: that ends the process.
            let _ = thread.join();
        }
    }
}

/// Starts the engine's thread, which takes the base over.
pub fn spawn(
    base: Base,
    config: &EngineConfig,
    metrics: Arc<Metrics>,
) -> Result<(EngineHandle, EngineThread), EngineError> {
    let EngineConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        ..
    } = *config;
    if tokens < seqs {
        return Err(EngineError::Budget { tokens, seqs });
    }
    if config.ticket_mode != TicketMode::Overlay && !base.resident.can_apply() {
        return Err(EngineError::Quantized);
    }
    let blocks = config.kv_cache_bytes / base.block_bytes();
    if blocks == 0 {
        let (given, block) = (config.kv_cache_bytes, base.block_bytes());
        return Err(EngineError::Cache { given, block });
    }
    let limits = Limits {
        max_model_len: base.max_positions.min(blocks * BLOCK),
        vocab_size: base.decoder.config().vocab_size,
        max_logprobs: MAX_LOGPROBS,
    };
    let scheduler = Scheduler::new(SchedulerConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        blocks,
        block_size: BLOCK,
    });
    let threads = |e: &dyn std::fmt::Display| EngineError::Threads(e.to_string());
    let pool = kernels::Pool::new(config.threads).map_err(|e| threads(&e))?;
    let mut runner = Runner::new(base, blocks, config.enforce_eager)?;
    let policy = policy(config, &mut runner, &pool)?;
    let max_model_len = limits.max_model_len;
    let (handle, inbox) = channel(limits, seqs.saturating_add(config.max_queue));
    let engine = Engine {
        runner,
        scheduler,
        policy,
        sequences: HashMap::new(),
        next_id: 0,
        max_model_len,
        end_tokens: config.end_tokens.clone(),
        inbox,
        metrics,
    };
    let thread = std::thread::Builder::new().name("engine".to_owned());
    let thread = thread.spawn(move || or_exit(|| pool.install(|| engine.run())));
    let thread = Some(thread.map_err(|e| threads(&e))?);
    let joined = EngineThread {
        handle: handle.clone(),
        thread,
    };
    Ok((handle, joined))
}

/// How steps are shared out, by the mode; measures the base where that is wanted.
fn policy(
    config: &EngineConfig,
    runner: &mut Runner,
    pool: &kernels::Pool,
) -> Result<Policy, ModelError> {
    let limits = TurnLimits {
        steps: TURN_STEPS,
        tokens: config.max_num_batched_tokens,
    };
    let costs = match (config.ticket_mode, &config.costs) {
        (TicketMode::Overlay, _) => return Ok(Policy::Together),
        (TicketMode::Apply, _) => return Ok(Policy::Turns(Turns::new(limits))),
        (TicketMode::Auto, Some(costs)) => costs.clone(),
        (TicketMode::Auto, None) => {
            let Measured { costs, took } = pool.install(|| runner.measure_costs())?;
            tracing::info!("costs, measured in {:.2} s: {costs}", took.as_secs_f64());
            costs
        }
    };
    Ok(Policy::ByCost(Box::new(ByCost::new(costs, limits))))
}

/// Runs the engine and ends the process if it panics: the weights may be half patched, and nothing
/// must be served from them.
fn or_exit(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        eprintln!("tombola: the engine has failed (its message is above); the process ends");
        std::process::exit(70);
    }
}

struct Engine {
    runner: Runner,
    scheduler: Scheduler,
    policy: Policy,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: SequenceId,
    max_model_len: usize,
    end_tokens: Vec<u32>,
    inbox: EngineInbox,
    metrics: Arc<Metrics>,
}

impl Engine {
    fn run(mut self) {
        while self.receive() {
            self.drop_cancelled();
            let start = Instant::now();
            if let Some(plan) = self.plan() {
                self.step(&plan, start);
            } else {
                // All blocks and slots are free when nothing runs, so something can.
                assert!(self.scheduler.is_idle(), "sequences wait and none can run");
            }
            self.report();
        }
    }

    /// The next step, as the policy wants it; `None` where there is nothing to do.
    fn plan(&mut self) -> Option<Plan> {
        loop {
            let demand = self.scheduler.demand();
            let loads: Vec<Load> = demand.iter().map(|demand| self.load(demand)).collect();
            let groups = self.policy.next(&loads)?;
            let plan = self.scheduler.schedule(&groups);
            if let Some(plan) = &plan {
                self.policy.ran(&plan.rows_by_group());
            }
            // A group may have lost its blocks meanwhile; then another one goes.
            if plan.is_some() || groups == Groups::All {
                return plan;
            }
        }
    }

    fn load(&self, demand: &Demand) -> Load {
        let (_, oldest) = demand.since;
        let lease = self.sequences[&oldest].lease.as_ref();
        Load {
            group: demand.group,
            rows: demand.rows,
            nonzeros: lease.map_or(0, |lease| lease.ticket().nonzeros()),
            laid_out: lease.is_none_or(runner::is_laid_out),
        }
    }

    /// Takes in what was submitted, waiting for it where there is nothing else to do; false when the
    /// engine is to end.
    fn receive(&mut self) -> bool {
        let mut digests = Vec::new();
        loop {
            let idle = self.scheduler.is_idle() && digests.is_empty();
            let command = if idle {
                // Whoever waits for memory must not wait for a ticket that nobody uses.
                self.swap_to_base();
                match self.inbox.recv() {
                    Some(command) => command,
                    None => return false,
                }
            } else {
                match self.inbox.try_recv() {
                    Some(command) => command,
                    None => break,
                }
            };
            match command {
                Command::Submit {
                    request,
                    outputs,
                    arrived,
                } => {
                    let (ends, limit) = (&self.end_tokens, self.max_model_len);
                    self.add(Sequence::new(*request, outputs, arrived, ends, limit));
                }
                Command::BaseDigest(answer) => digests.push(answer),
                Command::Shutdown => return false,
            }
        }
        digests.retain(|answer| !answer.is_closed());
        if !digests.is_empty() {
            self.swap_to_base();
            let digest = self.runner.digest().expect("resident values can be read");
            for answer in digests {
                // Whoever asked may have gone meanwhile.
                let _ = answer.send(digest);
            }
        }
        true
    }

    fn swap_to_base(&mut self) {
        let swap = self.runner.swap(None);
        let swap = swap.unwrap_or_else(|error| panic!("a ticket cannot be reverted: {error}"));
        self.count(swap);
        self.policy.reverted();
    }

    fn count(&self, swap: Option<SwapReport>) {
        if let Some(swap) = swap {
            self.metrics.engine.observe_swap(swap.took);
        }
    }

    fn add(&mut self, sequence: Sequence) {
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler
            .add(id, sequence.group(), sequence.tokens.len());
        self.sequences.insert(id, sequence);
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.sequences.remove(&id);
    }

    fn drop_cancelled(&mut self) {
        let cancelled = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.is_cancelled());
        let cancelled: Vec<SequenceId> = cancelled.map(|(&id, _)| id).collect();
        cancelled.into_iter().for_each(|id| self.remove(id));
    }

    /// Schedule → run → postprocess.
    fn step(&mut self, plan: &Plan, start: Instant) {
        for chunk in &plan.chunks {
            let sequence = self
                .sequences
                .get_mut(&chunk.id)
                .expect("planned sequences are here");
            if let Some(since) = sequence.queued_since.take() {
                self.metrics
                    .engine
                    .queue_time
                    .observe(since.elapsed().as_secs_f64());
            }
        }
        let output = self.runner.step(plan, &self.scheduler, &self.sequences);
        let output = output.unwrap_or_else(|error| panic!("a step failed: {error}"));
        self.count(output.swap);
        for took in output.laid_out {
            self.metrics.engine.observe_overlay_build(took);
        }
        self.postprocess(plan, output.chunks);
        self.metrics
            .engine
            .observe_step(plan.mode(), start.elapsed(), output.overlaid);
    }

    /// Hands each sequence what the step gave it, on all cores: it scores its prompt by that and
    /// chooses its next token.
    fn postprocess(&mut self, plan: &Plan, outputs: Vec<ChunkOutput>) {
        let outputs = plan.chunks.iter().zip(outputs);
        let outputs = outputs.filter(|(_, output)| !output.is_empty());
        let mut outputs: HashMap<SequenceId, (&Chunk, ChunkOutput)> =
            outputs.map(|output| (output.0.id, output)).collect();
        let sequences = self.sequences.iter_mut();
        let work: Vec<_> = sequences
            .filter_map(|(id, sequence)| Some((sequence, outputs.remove(id)?)))
            .collect();
        let goes_on: Vec<(&Chunk, bool)> = work
            .into_par_iter()
            .map(|(sequence, (chunk, output))| (chunk, sequence.step(chunk, output)))
            .collect();
        for (chunk, goes_on) in goes_on {
            if !goes_on {
                self.remove(chunk.id);
            } else if chunk.samples {
                self.scheduler.extend(chunk.id);
            }
        }
    }

    fn report(&self) {
        let scheduler = &self.scheduler;
        let metrics = &self.metrics.engine;
        metrics.requests_running.set(scheduler.num_running() as i64);
        metrics.requests_waiting.set(scheduler.num_waiting() as i64);
        metrics.kv_cache_usage.set(scheduler.cache_usage());
        metrics
            .preemptions
            .inc_by(scheduler.preemptions() - metrics.preemptions.get());
    }
}
