//! The arguments of `tombola serve`.

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::access::AccessArgs;
use super::http::{HTTP, HttpArgs};
use crate::chat::{ReasoningDialect, ToolDialect};
use crate::cli::base::{BaseArgs, ComputeArgs, QuantizedArgs, at_least_one};
use crate::cli::ticket_folder::FolderArgs;
use crate::engine::TicketMode;

/// Command line of `tombola serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeCommand {
    /// Base model, as after --model.
    #[arg(value_name = "MODEL", help_heading = BASE)]
    positional_model: Option<String>,
    #[command(flatten)]
    args: ServeArgs,
}

impl ServeCommand {
    /// The arguments; a base given as MODEL takes precedence over a variable.
    pub fn serve(self) -> ServeArgs {
        let mut args = self.args;
        if let Some(model) = self.positional_model {
            args.base.model = model;
        }
        args
    }
}

/// Whether a command line names the base both as MODEL and after --model.
pub fn names_two_bases(matches: &ArgMatches) -> bool {
    let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    typed("model") && typed("positional_model")
}

/// Arguments of `tombola serve`; each is an environment variable too.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// Name that requests use for the base [default: the model's own].
    #[arg(
        long,
        value_name = "NAME",
        env = "TOMBOLA_SERVED_MODEL_NAME",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = BASE,
    )]
    pub served_model_name: Option<String>,
    /// Form in which the base writes calls of tools: hermes, llama3_json, mistral, qwen3_coder or
    /// pythonic [default: as its chat template teaches].
    #[arg(
        long,
        value_name = "NAME",
        env = "TOMBOLA_TOOL_CALL_PARSER",
        help_heading = BASE,
    )]
    pub tool_call_parser: Option<ToolDialect>,
    /// Form in which the base writes reasoning: deepseek_r1, qwen3 or none [default: as its chat
    /// template teaches].
    #[arg(
        long,
        value_name = "NAME",
        env = "TOMBOLA_REASONING_PARSER",
        help_heading = BASE,
    )]
    pub reasoning_parser: Option<ReasoningDialect>,
    /// Longest sequence, prompt and output together, in tokens
    /// [default: the length that the model was trained for].
    #[arg(
        long,
        value_name = "TOKENS",
        env = "TOMBOLA_MAX_MODEL_LEN",
        value_parser = at_least_one,
        help_heading = BASE,
    )]
    pub max_model_len: Option<usize>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub quantized: QuantizedArgs,
    /// Launch each kernel of a decoding step separately instead of replaying a captured CUDA graph;
    /// no effect on the CPU.
    #[arg(long, env = "TOMBOLA_ENFORCE_EAGER", help_heading = COMPUTE)]
    pub enforce_eager: bool,
    #[command(flatten)]
    pub folder: FolderArgs,
    /// How tickets reach requests: apply (written into the weights, one ticket per step), overlay
    /// (all tickets in one step, the weights untouched), or auto (whichever costs less, decided per
    /// step) [default: auto; overlay with --keep-quantized].
    #[arg(
        long,
        value_name = "MODE",
        env = "TOMBOLA_TICKET_MODE",
        help_heading = TICKETS,
    )]
    pub ticket_mode: Option<TicketMode>,
    /// Give each greedy or seeded request the same answer whatever else runs: tickets are always
    /// overlaid; on the CPU only.
    #[arg(long, env = "TOMBOLA_DETERMINISTIC", help_heading = TICKETS)]
    pub deterministic: bool,
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
    pub ticket_memory_mib: Mebibytes,
    /// Seconds that a request waits for ticket memory while all tickets in it are in use.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_TICKET_WAIT_SECONDS",
        default_value_t = 300,
        help_heading = TICKETS,
    )]
    pub ticket_wait_seconds: u64,
    /// Public tickets that stay in memory, loaded at the start.
    #[arg(
        long,
        value_name = "NAME",
        env = "TOMBOLA_PIN",
        num_args = 1..,
        value_delimiter = ',',
        help_heading = TICKETS,
    )]
    pub pin: Vec<String>,
    /// Largest accepted ticket file, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_TICKET_MIB",
        default_value = "1024",
        value_parser = mebibytes,
        help_heading = TICKETS,
    )]
    pub max_ticket_mib: Mebibytes,
    /// Disk for uploads in progress in the ticket folder, in MiB; further ones are answered with
    /// status 429.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_UPLOAD_SPOOL_MIB",
        default_value = "4096",
        value_parser = mebibytes,
        help_heading = TICKETS,
    )]
    pub upload_spool_mib: Mebibytes,
    /// Read the ticket folder at the start only, instead of watching it.
    #[arg(long, env = "TOMBOLA_NO_WATCH", help_heading = TICKETS)]
    pub no_watch: bool,
    /// Accept tickets made for another base if every name and shape fits.
    #[arg(long, env = "TOMBOLA_ALLOW_FOREIGN_BASE", help_heading = TICKETS)]
    pub allow_foreign_base: bool,
    /// Sequences that run at once.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_NUM_SEQS",
        default_value = "64",
        value_parser = at_least_one,
        help_heading = SCHEDULING,
    )]
    pub max_num_seqs: usize,
    /// Tokens per step; a longer prompt is computed in chunks.
    #[arg(
        long,
        value_name = "TOKENS",
        env = "TOMBOLA_MAX_NUM_BATCHED_TOKENS",
        default_value = "512",
        value_parser = at_least_one,
        help_heading = SCHEDULING,
    )]
    pub max_num_batched_tokens: usize,
    /// Requests that wait while --max-num-seqs run; further requests are answered with status 429.
    #[arg(
        long,
        value_name = "N",
        env = "TOMBOLA_MAX_QUEUE",
        default_value_t = 256,
        help_heading = SCHEDULING,
    )]
    pub max_queue: usize,
    /// Seconds after which a step of the engine counts as hanging: /health and /ready then answer
    /// 503 until it ends; 0 for no limit.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_STEP_TIMEOUT",
        default_value_t = 120,
        help_heading = SCHEDULING,
    )]
    pub step_timeout: u64,
    /// Memory for keys and values, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_KV_CACHE_MIB",
        default_value = "1024",
        value_parser = mebibytes,
        help_heading = SCHEDULING,
    )]
    pub kv_cache_mib: Mebibytes,
    /// Compute every prompt from its start, instead of sharing the keys and values of common
    /// prefixes between requests.
    #[arg(
        long,
        env = "TOMBOLA_NO_ENABLE_PREFIX_CACHING",
        help_heading = SCHEDULING,
    )]
    pub no_enable_prefix_caching: bool,
    /// Address to listen on.
    #[arg(
        long,
        env = "TOMBOLA_HOST",
        default_value = "127.0.0.1",
        help_heading = HTTP,
    )]
    pub host: String,
    /// Port to listen on; 0 picks a free one.
    #[arg(
        long,
        env = "TOMBOLA_PORT",
        default_value_t = 8000,
        help_heading = HTTP,
    )]
    pub port: u16,
    /// Largest accepted JSON body, in MiB.
    #[arg(
        long,
        value_name = "MIB",
        env = "TOMBOLA_MAX_BODY_MIB",
        default_value = "8",
        value_parser = mebibytes,
        help_heading = HTTP,
    )]
    pub max_body_mib: Mebibytes,
    /// Refuse a request with a field that nobody knows, instead of ignoring the field with a
    /// response header that names it.
    #[arg(long, env = "TOMBOLA_STRICT_FIELDS", help_heading = HTTP)]
    pub strict_fields: bool,
    /// Seconds that running responses get to finish after SIGTERM or SIGINT.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TOMBOLA_DRAIN_SECONDS",
        default_value_t = 30,
        help_heading = HTTP,
    )]
    pub drain_seconds: u64,
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub http: HttpArgs,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola serve                                       Built-in base, tickets in adapters/
  tombola serve Qwen/Qwen2.5-0.5B-Instruct --dtype bf16
  tombola serve --model base.gguf --keep-quantized    In about the memory of the file
  tombola serve --ticket-mode overlay --port 8080
  tombola serve --host 0.0.0.0 --api-keys keys.json   Only for the holders of keys
  TOMBOLA_TICKETS=/data/tickets tombola               A flag as an environment variable";

// Headings of `--help`, and of the flag tables in docs/.
const BASE: &str = "Base";
const COMPUTE: &str = "Compute";
const TICKETS: &str = "Tickets";
const SCHEDULING: &str = "Scheduling";

impl ServeArgs {
    /// Ticket mode, checked against the flags that restrict it.
    ///
    /// # Errors
    /// The flags contradict each other.
    pub fn mode(&self) -> anyhow::Result<TicketMode> {
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
pub struct Mebibytes(usize);

impl Mebibytes {
    /// The size in bytes.
    pub fn bytes(self) -> usize {
        self.0 << 20
    }
}

fn mebibytes(text: &str) -> Result<Mebibytes, String> {
    match at_least_one(text)? {
        mib if mib <= usize::MAX >> 20 => Ok(Mebibytes(mib)),
        _ => Err("exceeds the address space".to_owned()),
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
                .contains("address space")
        );
    }
}
