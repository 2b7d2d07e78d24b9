//! `tombola serve`: makes a base resident, opens the ticket folder, and serves until a signal.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tokio::net::TcpListener;

use super::banner::announce;
use super::base::{BaseArgs, ComputeArgs, OpenBase, QuantizedArgs, at_least_one};
use super::signals::Signals;
use super::ticket_folder::FolderArgs;
use crate::engine::{self, EngineConfig, TicketMode};
use crate::metrics::Metrics;
use crate::model::{Base, LoadOptions};
use crate::registry::{Registry, RegistryOptions};
use crate::server::{self, AppState, Drained, ServedBase, ServerOptions, StartupGate};

/// Arguments of `tombola serve`; each is an environment variable too.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// Name that requests use for the base [default: the model's own].
    #[arg(
        long,
        value_name = "NAME",
        env = "TOMBOLA_SERVED_MODEL_NAME",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = BASE,
    )]
    served_model_name: Option<String>,
    /// Longest sequence, prompt and output together, in tokens
    /// [default: the length that the model was trained for].
    #[arg(
        long,
        value_name = "TOKENS",
        env = "TOMBOLA_MAX_MODEL_LEN",
        value_parser = at_least_one,
        help_heading = BASE,
    )]
    max_model_len: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    quantized: QuantizedArgs,
    /// Launch each kernel of a decoding step separately instead of replaying a captured CUDA graph;
    /// no effect on the CPU.
    #[arg(long, env = "TOMBOLA_ENFORCE_EAGER", help_heading = COMPUTE)]
    enforce_eager: bool,
    #[command(flatten)]
    folder: FolderArgs,
    /// How tickets reach requests: apply (written into the weights, one ticket per step), overlay
    /// (all tickets in one step, the weights untouched), or auto (whichever costs less, decided per
    /// step) [default: auto; overlay with --keep-quantized].
    #[arg(
        long,
        value_name = "MODE",
        env = "TOMBOLA_TICKET_MODE",
        help_heading = TICKETS,
    )]
    ticket_mode: Option<TicketMode>,
    /// Give each greedy or seeded request the same answer whatever else runs: tickets are always
    /// overlaid; on the CPU only.
    #[arg(long, env = "TOMBOLA_DETERMINISTIC", help_heading = TICKETS)]
    deterministic: bool,
    /// Memory for tickets in MiB; the least recently used ticket is evicted first. A ticket takes
    /// about 2.5 times the size of its file; with --ticket-mode apply on the CPU, about its size.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_TICKET_MEMORY_MIB",
        default_value = "2048",
        value_parser = mebibytes,
        help_heading = TICKETS,
    )]
    ticket_memory_mib: Mebibytes,
    /// Largest accepted ticket file, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_TICKET_MIB",
        default_value = "1024",
        value_parser = mebibytes,
        help_heading = TICKETS,
    )]
    max_ticket_mib: Mebibytes,
    /// Accept tickets made for another base if every name and shape fits.
    #[arg(long, env = "TOMBOLA_ALLOW_FOREIGN_BASE", help_heading = TICKETS)]
    allow_foreign_base: bool,
    /// Sequences that run at once.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_NUM_SEQS",
        default_value = "64",
        value_parser = at_least_one,
        help_heading = SCHEDULING,
    )]
    max_num_seqs: usize,
    /// Tokens per step; a longer prompt is computed in chunks.
    #[arg(
        long,
        value_name = "TOKENS",
        env = "TOMBOLA_MAX_NUM_BATCHED_TOKENS",
        default_value = "512",
        value_parser = at_least_one,
        help_heading = SCHEDULING,
    )]
    max_num_batched_tokens: usize,
    /// Requests that wait while --max-num-seqs run; further requests are answered with status 429.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_QUEUE",
        default_value_t = 256,
        help_heading = SCHEDULING,
    )]
    max_queue: usize,
    /// Memory for keys and values, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_KV_CACHE_MIB",
        default_value = "1024",
        value_parser = mebibytes,
        help_heading = SCHEDULING,
    )]
    kv_cache_mib: Mebibytes,
    /// Address to listen on.
    #[arg(
        long,
        env = "TOMBOLA_HOST",
        default_value = "127.0.0.1",
        help_heading = HTTP,
    )]
    host: String,
    /// Port to listen on; 0 picks a free one.
    #[arg(
        long,
        env = "TOMBOLA_PORT",
        default_value_t = 8000,
        help_heading = HTTP,
    )]
    port: u16,
    /// Largest accepted JSON body, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_BODY_MIB",
        default_value = "8",
        value_parser = mebibytes,
        help_heading = HTTP,
    )]
    max_body_mib: Mebibytes,
    /// Seconds that running responses get to finish after SIGTERM or SIGINT.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_DRAIN_SECONDS",
        default_value_t = 30,
        help_heading = HTTP,
    )]
    drain_seconds: u64,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola serve                                       Built-in base, tickets in adapters/
  tombola serve --model Qwen/Qwen2.5-0.5B-Instruct --dtype bf16
  tombola serve --model base.gguf --keep-quantized    In about the memory of the file
  tombola serve --ticket-mode overlay --port 8080
  TOMBOLA_TICKETS=/data/tickets tombola               A flag as an environment variable";

// Headings of `--help`, and of the flag tables in docs/.
const BASE: &str = "Base";
const COMPUTE: &str = "Compute";
const TICKETS: &str = "Tickets";
const SCHEDULING: &str = "Scheduling";
const HTTP: &str = "HTTP";

impl ServeArgs {
    /// Ticket mode, after a check of the flags that limit it.
    fn mode(&self) -> anyhow::Result<TicketMode> {
        if self.deterministic && self.compute.device.is_gpu() {
            bail!(
                "--deterministic with --device {}: on a GPU, results depend on the number of rows \
                 in a step; use --device cpu",
                self.compute.device
            );
        }
        match (self.deterministic, self.ticket_mode) {
            (false, mode) => self.quantized.ticket_mode(mode),
            (true, None | Some(TicketMode::Overlay)) => Ok(TicketMode::Overlay),
            (true, Some(mode)) => bail!(
                "--deterministic with --ticket-mode {mode}: deterministic serving overlays \
                 tickets; leave one of the two flags out"
            ),
        }
    }
}

/// Size in MiB that fits the address space in bytes.
#[derive(Clone, Copy, Debug)]
struct Mebibytes(usize);

impl Mebibytes {
    fn bytes(self) -> usize {
        self.0 << 20
    }
}

fn mebibytes(text: &str) -> Result<Mebibytes, String> {
    match at_least_one(text)? {
        mib if mib <= usize::MAX >> 20 => Ok(Mebibytes(mib)),
        _ => Err("is more than can be addressed".to_owned()),
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The base cannot be loaded, the ticket folder not opened, the address not bound, or the limits
/// contradict each other.
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
    let mode = args.mode()?;
    // First, so that a port in use fails before minutes of loading.
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let drain = Duration::from_secs(args.drain_seconds);
    let mut signals = Signals::new()?;
    let shutdown = async move {
        signals.recv().await;
        tracing::info!("received a signal: finishing running responses, accepting no new ones");
        tokio::spawn(async move {
            signals.recv().await;
            tracing::warn!("received a second signal: cutting off running responses");
            std::process::exit(0);
        });
    };
    let gate = StartupGate::default();
    let serving = tokio::spawn(server::serve(listener, gate.clone(), shutdown, drain));
    let mut signals = Signals::new()?;
    let (state, _engine) = tokio::select! {
        // On a blocking thread, because loading takes long.
        started = tokio::task::spawn_blocking(move || start(&args, mode)) => started??,
        () = signals.recv() => {
            tracing::info!("received a signal before the start was complete");
            std::process::exit(0);
        }
    };
    let state = Arc::new(state);
    gate.open(Arc::clone(&state));
    announce(address, &state)?;
    if serving.await?? == Drained::TimedOut {
        tracing::warn!(
            "responses still running after {} seconds: they are cut off",
            drain.as_secs()
        );
    }
    Ok(())
}

/// State of the HTTP routes, and the engine thread, which ends when dropped.
fn start(args: &ServeArgs, mode: TicketMode) -> anyhow::Result<(AppState, engine::EngineThread)> {
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
        weight_bytes: base.resident.bytes(),
        loaded_digest: base.loaded_digest,
    };
    let max_ticket_bytes = args.max_ticket_mib.bytes() as u64;
    let registry_options = RegistryOptions {
        max_ticket_bytes,
        memory_budget: ticket_memory(args, &base),
        ticket_memory: base.ticket_memory(mode != TicketMode::Apply),
        allow_foreign_base: args.allow_foreign_base,
    };
    let folder = Registry::open(&args.folder.tickets, manifest, registry_options)?;
    for (path, error) in &folder.refused {
        tracing::warn!("{} is not served: {error}", path.display());
    }
    let config = engine_config(args, mode, &opened);
    let metrics = Arc::new(Metrics::new(base.max_positions)?);
    let (engine, thread) = engine::spawn(base, &config, Arc::clone(&metrics))?;
    let limit = engine.limits().max_model_len;
    if let Some(asked) = args.max_model_len.filter(|&asked| asked > limit) {
        let mib = args.kv_cache_mib.0;
        bail!("--max-model-len {asked} is more than the {limit} tokens of --kv-cache-mib {mib}");
    }
    let options = ServerOptions {
        max_body_bytes: args.max_body_mib.bytes(),
        max_ticket_bytes,
        ..ServerOptions::default()
    };
    let registry = Arc::new(folder.registry);
    Ok((
        AppState::new(engine, registry, opened.text, served, metrics, options),
        thread,
    ))
}

/// Bytes of memory for tickets: the requested budget, or the free memory of the device if that is
/// less.
fn ticket_memory(args: &ServeArgs, base: &Base) -> usize {
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

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    #[test]
    fn deterministic_overlays_and_refuses_other_modes() {
        let mode = |args: &[&str]| {
            let args = std::iter::once(&"tombola").chain(args);
            <Cli as clap::Parser>::parse_from(args).serve.mode()
        };
        assert_eq!(mode(&[]).unwrap(), TicketMode::Auto);
        assert_eq!(mode(&["--deterministic"]).unwrap(), TicketMode::Overlay);
        for chosen in TicketMode::ALL {
            let chosen = ["--ticket-mode", chosen.name()];
            assert_eq!(mode(&chosen).unwrap().name(), chosen[1]);
            let both = mode(&[&chosen[..], &["--deterministic"]].concat());
            match both {
                Ok(mode) => assert_eq!((mode, chosen[1]), (TicketMode::Overlay, "overlay")),
                Err(error) => assert!(error.to_string().contains(&chosen.join(" ")), "{error}"),
            }
        }
    }

    #[test]
    fn counts_and_sizes_are_checked() {
        assert_eq!(at_least_one("7"), Ok(7));
        assert!(at_least_one("0").unwrap_err().contains("at least 1"));
        assert!(at_least_one("-1").unwrap_err().contains("count"));
        assert_eq!(mebibytes("2").unwrap().bytes(), 2 << 20);
        assert!(
            mebibytes("17592186044416")
                .unwrap_err()
                .contains("addressed")
        );
    }
}
