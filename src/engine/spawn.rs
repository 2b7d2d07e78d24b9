//! Start and end of the engine's thread.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::constraint::MaskWorkers;
use super::costs::measure::Measured;
use super::handle::{EngineHandle, Limits, channel};
use super::mode::TicketMode;
use super::pace::Pace;
use super::policy::{ByCost, Policy, TurnLimits, Turns};
use super::runner::Runner;
use super::scheduler::{Scheduler, SchedulerConfig};
use super::verification::Verification;
use super::{Engine, EngineConfig, EngineError};
use crate::kernels;
use crate::metrics::Metrics;
use crate::model::{BLOCK, Base, ModelError};

/// Steps of a ticket's turn while others wait. On the CPU, a swap of a 1 % ticket costs about one
/// decoding step, one of a 10 % ticket about two (`benches/results/cpu.md`): an eighth to a quarter
/// of a turn. A newcomer waits for no more than one turn of each other group.
pub const TURN_STEPS: usize = 8;

/// Maximum number of alternatives per token that a request may ask for.
const MAX_LOGPROBS: usize = 20;

/// The engine's thread; dropping it ends and joins the thread.
pub struct EngineThread {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            // A panic was logged, and the handle tells it.
            let _ = thread.join();
        }
    }
}

/// Starts the engine's thread, which owns the base from then on. In [`TicketMode::Auto`] without
/// [`EngineConfig::costs`], measures the base first.
///
/// # Errors
/// The configuration does not fit the base, the device has no room for the KV cache, or a thread
/// cannot be started.
pub fn spawn(
    base: Base,
    config: &EngineConfig,
    metrics: Arc<Metrics>,
) -> Result<(EngineHandle, EngineThread), EngineError> {
    let blocks = check(&base, config)?;
    let limits = Limits {
        max_model_len: base.max_positions.min(blocks * BLOCK),
        vocab_size: base.decoder.config().vocab_size,
        max_logprobs: MAX_LOGPROBS,
        hidden_size: base.decoder.config().hidden_size,
    };
    let scheduler = Scheduler::new(SchedulerConfig {
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        blocks,
        block_size: BLOCK,
    });
    let threads = |e: &dyn std::fmt::Display| EngineError::Threads(e.to_string());
    let pool = kernels::Pool::new(config.threads).map_err(|e| threads(&e))?;
    let mut runner = Runner::new(base, blocks, config.enforce_eager)?;
    let policy = policy(config, &mut runner, &pool)?;
    let max_model_len = limits.max_model_len;
    let capacity = config.max_num_seqs.saturating_add(config.max_queue);
    let (handle, inbox) = channel(limits, capacity);
    let engine = Engine {
        runner,
        scheduler,
        policy,
        sequences: HashMap::new(),
        next_id: 0,
        max_model_len,
        enable_prefix_caching: config.enable_prefix_caching,
        end_tokens: config.end_tokens.clone(),
        inbox,
        mask_workers: MaskWorkers::new(mask_threads()).map_err(|e| threads(&e))?,
        verification: Verification::default(),
        pace: Pace::default(),
        last_swap: Duration::ZERO,
        failed_in_a_row: 0,
        metrics,
    };
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || pool.install(|| guard(|| engine.run())))
        .map_err(|e| threads(&e))?;
    let joined = EngineThread {
        handle: handle.clone(),
        thread: Some(thread),
    };
    Ok((handle, joined))
}

/// Number of threads that compute masks: few on a small machine, where they compete with the
/// kernels, and enough on a large one for the rows of a short step.
fn mask_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 4))
}

/// Checks a configuration against the base; returns the number of KV blocks.
fn check(base: &Base, config: &EngineConfig) -> Result<usize, EngineError> {
    let EngineConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        kv_cache_bytes: given,
        ..
    } = *config;
    if tokens < seqs {
        return Err(EngineError::Budget { tokens, seqs });
    }
    if config.ticket_mode != TicketMode::Overlay && !base.resident.can_apply() {
        return Err(EngineError::Quantized);
    }
    let block = base.block_bytes();
    match given / block {
        0 => Err(EngineError::Cache { given, block }),
        blocks => Ok(blocks),
    }
}

/// The policy of a ticket mode. Measures the base if the mode decides by costs and none are given.
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
            tracing::info!("measured costs in {:.2} s: {costs}", took.as_secs_f64());
            costs
        }
    };
    Ok(Policy::ByCost(Box::new(ByCost::new(costs, limits))))
}

/// Runs the engine. If it panics, the weights may be half patched and must not be used: the engine
/// is dropped, which ends its streams and marks the handle as failed, so that the server exits.
fn guard(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("the engine failed: see the panic's message; no request can be served");
    }
}
