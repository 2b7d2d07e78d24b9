//! `tombola serve`: make a base resident, open the ticket folder, serve until a signal.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::base::{Bars, BaseArgs, load_text};
use crate::engine::{self, EngineConfig};
use crate::metrics::Metrics;
use crate::model::{Base, DeviceSpec, Dtype, LoadOptions, Source};
use crate::registry::{Registry, RegistryOptions};
use crate::server::{self, AppState, Drained, ServedBase, ServerOptions};
use crate::text::Text;

/// Arguments of `tombola serve`; each is an environment variable too.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// The address to listen on.
    #[arg(long, env = "TOMBOLA_HOST", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, env = "TOMBOLA_PORT", default_value_t = 8000)]
    port: u16,
    /// What the weights are kept in: f32 or bf16.
    #[arg(long, env = "TOMBOLA_DTYPE", default_value = "f32")]
    dtype: Dtype,
    /// Where the base is resident: cpu.
    #[arg(long, env = "TOMBOLA_DEVICE", default_value = "cpu")]
    device: DeviceSpec,
    /// The name that requests use for the base [default: the model's own].
    #[arg(long, value_name = "NAME", env = "TOMBOLA_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// The ticket folder: each NAME.safetensors in it is served as NAME, uploads land in it.
    #[arg(
        long,
        value_name = "DIR",
        env = "TOMBOLA_TICKETS",
        default_value = "adapters"
    )]
    tickets: PathBuf,
    /// The largest ticket file that is taken, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_TICKET_MIB",
        default_value_t = 1024
    )]
    max_ticket_mib: u64,
    /// Memory for tickets, in MiB; the least recently used leave it first.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_TICKET_MEMORY_MIB",
        default_value_t = 2048
    )]
    ticket_memory_mib: usize,
    /// Take tickets made for another base whose names and shapes fit.
    #[arg(long, env = "TOMBOLA_ALLOW_FOREIGN_BASE")]
    allow_foreign_base: bool,
    /// Tokens of prompt and output together [default: what the model was trained for].
    #[arg(long, value_name = "TOKENS", env = "TOMBOLA_MAX_MODEL_LEN")]
    max_model_len: Option<usize>,
    /// Sequences that run at once.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_NUM_SEQS",
        default_value_t = 64
    )]
    max_num_seqs: usize,
    /// Tokens of one step: longer prompts are computed in chunks.
    #[arg(
        long,
        value_name = "TOKENS",
        env = "TOMBOLA_MAX_NUM_BATCHED_TOKENS",
        default_value_t = 512
    )]
    max_num_batched_tokens: usize,
    /// Requests that wait beyond those that run; more are answered 429.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_QUEUE",
        default_value_t = 256
    )]
    max_queue: usize,
    /// Memory for keys and values, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_KV_CACHE_MIB",
        default_value_t = 1024
    )]
    kv_cache_mib: usize,
    /// Threads that compute [default: all cores].
    #[arg(long, value_name = "N", env = "TOMBOLA_THREADS")]
    threads: Option<usize>,
    /// The largest JSON body that is taken, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_BODY_MIB",
        default_value_t = 8
    )]
    max_body_mib: usize,
    /// Seconds that running responses get after SIGTERM or SIGINT.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_DRAIN_SECONDS",
        default_value_t = 30
    )]
    drain_seconds: u64,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The base cannot be loaded, the folder not opened, the address not bound; or limits that cannot
/// work together.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,tombola=info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    // First, so that a taken port is told before minutes of loading.
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("a signal came: running responses are finished, no new ones are taken");
    };
    let drain = Duration::from_secs(args.drain_seconds);
    // Not in the runtime's threads: it takes long.
    let started = tokio::task::spawn_blocking(move || start(&args)).await??;
    let (state, _engine) = started;
    announce(address, &state)?;
    if server::serve(listener, Arc::new(state), shutdown, drain).await? == Drained::TimedOut {
        tracing::warn!(
            "responses still ran after {} seconds; they are cut off",
            drain.as_secs()
        );
    }
    Ok(())
}

/// All that stands behind the routes, and the engine's thread, which ends when dropped.
fn start(args: &ServeArgs) -> anyhow::Result<(AppState, engine::EngineThread)> {
    let cache = args.base.cache();
    let mut bars = Bars::default();
    let source = Source::parse(&args.base.model)?;
    let files = source.resolve(&cache, &mut |progress| bars.show(progress))?;
    let text = Arc::new(load_text(&files)?);
    let name = args
        .served_model_name
        .clone()
        .unwrap_or_else(|| source.name());
    let options = LoadOptions {
        dtype: args.dtype,
        device: args.device,
        max_positions: args.max_model_len,
    };
    let base = Base::load(&name, &files, &options, &cache, &mut |progress| {
        bars.show(progress);
    })?;
    let manifest = Arc::clone(&base.manifest);
    let served = ServedBase {
        manifest: Arc::clone(&manifest),
        dtype: args.dtype.to_string(),
        loaded_digest: base.loaded_digest,
    };
    let max_ticket_bytes = args.max_ticket_mib << 20;
    let registry_options = RegistryOptions {
        max_ticket_bytes,
        memory_budget: args.ticket_memory_mib << 20,
        allow_foreign_base: args.allow_foreign_base,
    };
    let opened = Registry::open(&args.tickets, manifest, registry_options)?;
    for (path, error) in &opened.refused {
        tracing::warn!("{} is not served: {error}", path.display());
    }
    let config = engine_config(args, &base, &text);
    let metrics = Arc::new(Metrics::new(base.max_positions)?);
    let (engine, thread) = engine::spawn(base, &config, Arc::clone(&metrics))?;
    let limit = engine.limits().max_model_len;
    if let Some(asked) = args.max_model_len.filter(|&asked| asked > limit) {
        bail!(
            "--max-model-len {asked} is beyond {limit}: what the model was trained for, or what \
             --kv-cache-mib {} holds",
            args.kv_cache_mib
        );
    }
    let options = ServerOptions {
        max_body_bytes: args.max_body_mib << 20,
        max_ticket_bytes,
        ..ServerOptions::default()
    };
    let registry = Arc::new(opened.registry);
    Ok((
        AppState::new(engine, registry, text, served, metrics, options),
        thread,
    ))
}

fn engine_config(args: &ServeArgs, base: &Base, text: &Text) -> EngineConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut end_tokens = base.decoder.config().eos_token_ids.clone();
    end_tokens.extend(text.eos_token_ids());
    end_tokens.sort_unstable();
    end_tokens.dedup();
    EngineConfig {
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        max_queue: args.max_queue,
        kv_cache_bytes: args.kv_cache_mib << 20,
        threads: args.threads.unwrap_or(cores),
        end_tokens,
    }
}

/// A question that base and SQL ticket answer differently. No single quotes: it goes into a shell.
const EXAMPLE: &str = r"CREATE TABLE singer (name VARCHAR, age INTEGER)\n-- Show name and age of all singers, oldest first.";

/// Prints where the server is, what it serves, and a command to paste.
fn announce(address: SocketAddr, state: &AppState) -> anyhow::Result<()> {
    let base = &state.base;
    let manifest = &base.manifest;
    let fingerprint = manifest.fingerprint.to_string();
    let tickets = state.registry.list();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "tombola {} at http://{address}",
        env!("CARGO_PKG_VERSION")
    )?;
    writeln!(
        out,
        "  base     {} ({}, fingerprint {:.12}…)",
        manifest.name, base.dtype, fingerprint
    )?;
    if tickets.is_empty() {
        writeln!(
            out,
            "  tickets  none yet; POST one to http://{address}/v1/tickets"
        )?;
    }
    for (i, ticket) in tickets.iter().enumerate() {
        let label = if i == 0 { "tickets" } else { "" };
        let density = 100.0 * ticket.metadata().density;
        let (alias, nonzeros) = (ticket.alias(), ticket.nonzeros());
        writeln!(
            out,
            "  {label:<7}  {alias} ({nonzeros} nonzeros, density {density:.2} %)"
        )?;
    }
    let model = tickets
        .first()
        .map_or(manifest.name.as_str(), |ticket| ticket.alias());
    let (route, prompt) = if state.text.has_chat_template() {
        (
            "chat/completions",
            format!(r#""messages": [{{"role": "user", "content": "{EXAMPLE}"}}]"#),
        )
    } else {
        ("completions", format!(r#""prompt": "{EXAMPLE}""#))
    };
    writeln!(
        out,
        "try it:\n  curl http://{address}/v1/{route} -H 'content-type: application/json' \
         -d '{{\"model\": \"{model}\", {prompt}, \"max_tokens\": 48, \"temperature\": 0}}'"
    )?;
    Ok(out.flush()?)
}
