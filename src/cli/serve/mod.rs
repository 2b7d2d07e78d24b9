//! `tombola serve`: makes a base resident, opens the ticket folder, and serves until a signal.

mod access;
mod args;
mod http;
mod listeners;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
pub use args::{EXAMPLES, ServeArgs, ServeCommand, names_two_bases};
use tokio::sync::oneshot;

use super::banner::announce;
use super::base::OpenBase;
use super::signals::Signals;
use crate::chat::ChatFormat;
use crate::engine::{self, EngineConfig, TicketMode};
use crate::metrics::Metrics;
use crate::model::{Base, LoadOptions};
use crate::registry::{FolderWatch, Generation, Name, Registry, RegistryError, RegistryOptions};
use crate::server::{
    self, AccessOptions, AppState, Drained, ServedBase, ServerOptions, StartupGate,
};

/// Exit status after a panic of the engine's thread: EX_SOFTWARE of `sysexits.h`.
const ENGINE_FAILED: i32 = 70;

/// Exit status if the engine is still inside a step after the drain: EX_TEMPFAIL of `sysexits.h`.
const ENGINE_HANGS: i32 = 75;

/// Time that the engine gets for its last step after the drain.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The base cannot be loaded, the ticket folder not opened, the address not bound, or the limits
/// contradict each other.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,tombola=info,audit=info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A line that cannot be written, as on a full disk, would be reported by a panic.
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let mode = args.mode()?;
    // First, so that a port in use fails before minutes of loading.
    let bound = listeners::bind(&args).await?;
    let url = bound.url(bound.address);
    let admin_url = bound.admin_address.map(|address| bound.url(address));
    let access = args.access.options(bound.reachable)?;
    let drain = Duration::from_secs(args.drain_seconds);
    let mut signals = Signals::new()?;
    let (engine_fails, engine_failed) = oneshot::channel();
    let shutdown = async move {
        tokio::select! {
            () = signals.recv() => tracing::info!(
                "received a signal: finishing running responses, accepting no new ones"
            ),
            Ok(()) = engine_failed => tracing::error!("the engine failed: ending"),
        }
        tokio::spawn(async move {
            signals.recv().await;
            tracing::warn!("received a second signal: cutting off running responses");
            std::process::exit(0);
        });
    };
    let watch = !args.no_watch;
    let gate = StartupGate::default();
    let options = args.http.options(drain);
    let serving = server::serve(bound.listeners, gate.clone(), options, shutdown);
    let serving = tokio::spawn(serving);
    let mut signals = Signals::new()?;
    let (state, _engine) = tokio::select! {
        // On a blocking thread, because loading takes long.
        started = tokio::task::spawn_blocking(move || start(&args, mode, access)) => started??,
        () = signals.recv() => {
            tracing::info!("received a signal before the start was complete");
            std::process::exit(0);
        }
    };
    let state = Arc::new(state);
    gate.open(Arc::clone(&state));
    let metrics = Arc::clone(&state.metrics);
    let withdrawn = move |ticket: &Generation| {
        let name = ticket.name();
        metrics
            .server
            .ticket_deleted(name.owner_label(), name.alias);
    };
    let _watch = FolderWatch::start(Arc::clone(&state.registry), watch, withdrawn)
        .context("watching the ticket folder")?;
    tell_failure(state.engine.clone(), engine_fails);
    announce(&url, admin_url.as_deref(), &state)?;
    if serving.await? == Drained::TimedOut {
        tracing::warn!(
            "responses still running after {} seconds were cut off",
            drain.as_secs()
        );
    }
    if !engine_ends(&state.engine, LAST_STEP).await {
        tracing::error!(
            "exiting with status {ENGINE_HANGS} because the engine is still inside a step, {} s \
             after the last response ended",
            LAST_STEP.as_secs()
        );
        std::process::exit(ENGINE_HANGS);
    }
    if state.engine.has_failed() {
        tracing::error!("exiting with status {ENGINE_FAILED} because the engine failed");
        std::process::exit(ENGINE_FAILED);
    }
    Ok(())
}

/// Shuts the engine down. False if its thread has not ended after `patience`.
async fn engine_ends(engine: &engine::EngineHandle, patience: Duration) -> bool {
    engine.shutdown();
    tokio::time::timeout(patience, engine.ended()).await.is_ok()
}

/// Sends on `failed` if the engine's thread panics.
fn tell_failure(engine: engine::EngineHandle, failed: oneshot::Sender<()>) {
    tokio::spawn(async move {
        engine.ended().await;
        if engine.has_failed() {
            // The receiver is gone if a signal came first.
            let _ = failed.send(());
        }
    });
}

/// State of the HTTP routes, and the engine thread, which ends when dropped.
fn start(
    args: &ServeArgs,
    mode: TicketMode,
    access: AccessOptions,
) -> anyhow::Result<(AppState, engine::EngineThread)> {
    let mut opened = args.base.open()?;
    if let Some(name) = &args.served_model_name {
        opened.name.clone_from(name);
    }
    let mut compute = args.compute.load_options();
    if args.deterministic {
        compute.device = compute.device.or_cpu();
    }
    let base = opened.load(&LoadOptions {
        max_positions: args.max_model_len,
        keep_quantized: args.quantized.keep_quantized,
        ..compute
    })?;
    let manifest = Arc::clone(&base.manifest);
    let served = ServedBase {
        manifest: Arc::clone(&manifest),
        dtype: args.compute.dtype.to_string(),
        quantized: args.quantized.keep_quantized,
        end_tokens: opened.end_tokens(),
        weight_bytes: base.resident.bytes(),
        loaded_digest: base.loaded_digest,
    };
    let max_ticket_bytes = args.max_ticket_mib.bytes() as u64;
    let registry_options = RegistryOptions {
        max_ticket_bytes,
        memory_budget: args.ticket_memory_mib.bytes(),
        device_budget: device_ticket_memory(args, &base),
        ticket_memory: base.ticket_memory(mode != TicketMode::Apply),
        allow_foreign_base: args.allow_foreign_base,
        max_waiting: args.max_queue,
        memory_wait: Duration::from_secs(args.ticket_wait_seconds),
    };
    let cache = args.base.cache.dir();
    let folder = Registry::open(
        &args.folder.tickets,
        Some(cache.path()),
        manifest,
        registry_options,
    )?;
    log_refused(&folder.refused);
    let config = engine_config(args, mode, &opened);
    let positions = base.max_positions;
    let metrics = Arc::new(Metrics::new(positions)?);
    let (engine, thread) = engine::spawn(base, &config, Arc::clone(&metrics))?;
    let limit = engine.limits().max_model_len;
    if let Some(requested) = args.max_model_len.filter(|&requested| requested > limit) {
        let mib = args.kv_cache_mib.bytes() >> 20;
        bail!(
            "--max-model-len {requested} exceeds the {limit} tokens that --kv-cache-mib {mib} holds"
        );
    }
    if limit < positions {
        let mib = args.kv_cache_mib.bytes() >> 20;
        tracing::warn!(
            "the model takes {positions} tokens; sequences are limited to the {limit} that \
             --kv-cache-mib {mib} holds"
        );
    }
    let options = ServerOptions {
        max_body_bytes: args.max_body_mib.bytes(),
        max_ticket_bytes,
        upload_spool_bytes: args.upload_spool_mib.bytes() as u64,
        strict_fields: args.strict_fields,
        step_timeout: (args.step_timeout > 0).then(|| Duration::from_secs(args.step_timeout)),
        ..ServerOptions::default()
    };
    pin(args, &folder.registry)?;
    let registry = Arc::new(folder.registry);
    let state = AppState::new(engine, registry, opened.text, served, metrics, options);
    let format = ChatFormat {
        tools: args.tool_call_parser.or(state.format.tools),
        reasoning: args.reasoning_parser.unwrap_or(state.format.reasoning),
    };
    Ok((state.with_format(format).with_access(access), thread))
}

/// Names the first files that are not served.
fn log_refused(refused: &[(PathBuf, RegistryError)]) {
    const LINES: usize = 50;
    for (path, error) in refused.iter().take(LINES) {
        tracing::warn!("{} is not served: {error}", path.display());
    }
    if let Some(more) = refused.len().checked_sub(LINES).filter(|&more| more > 0) {
        tracing::warn!(
            "{more} more files are not served; GET /v1/tickets?status=refused lists them"
        );
    }
}

/// Pins the tickets that the arguments name, and loads them.
fn pin(args: &ServeArgs, registry: &Registry) -> anyhow::Result<()> {
    for alias in &args.pin {
        let pinned = registry.pin(Name::public(alias));
        let pinned = pinned.map_err(anyhow::Error::from).and_then(|_| {
            registry.lease(None, alias)?;
            Ok(())
        });
        pinned.with_context(|| format!("--pin {alias}"))?;
    }
    Ok(())
}

/// Bytes of the device's own memory for tickets: the requested budget, or the free memory if that
/// is less.
fn device_ticket_memory(args: &ServeArgs, base: &Base) -> usize {
    let requested = args.ticket_memory_mib.bytes();
    let room = base.room_for_tickets(requested, args.kv_cache_mib.bytes());
    if room < requested {
        tracing::warn!(
            "only {} MiB are free for tickets, less than --ticket-memory-mib {}",
            room >> 20,
            requested >> 20
        );
    }
    room
}

fn engine_config(args: &ServeArgs, mode: TicketMode, base: &OpenBase) -> EngineConfig {
    EngineConfig {
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        max_queue: args.max_queue,
        kv_cache_bytes: args.kv_cache_mib.bytes(),
        enable_prefix_caching: !args.no_enable_prefix_caching,
        ticket_mode: mode,
        costs: None,
        threads: args.compute.threads(),
        enforce_eager: args.enforce_eager,
        end_tokens: base.end_tokens(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Limits, channel};

    #[tokio::test]
    async fn an_engine_that_is_inside_a_step_holds_the_end_up_for_a_bounded_time() {
        let limits = Limits {
            max_model_len: 8,
            vocab_size: 8,
            max_logprobs: 0,
            hidden_size: 8,
        };
        let (engine, inbox) = channel(limits, 1);
        // A step that takes commands only once it is over.
        let (ends, end) = std::sync::mpsc::channel();
        let step = std::thread::spawn(move || {
            let _inbox = inbox;
            end.recv()
        });
        assert!(!engine_ends(&engine, Duration::from_millis(50)).await);
        ends.send(()).unwrap();
        assert!(engine_ends(&engine, Duration::from_secs(60)).await);
        step.join().unwrap().unwrap();
    }
}
