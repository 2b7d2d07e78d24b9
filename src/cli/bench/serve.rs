//! `tombola bench serve`: throughput and latencies of a server, measured by its client.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::access::ApiKey;
use crate::cli::base::{BaseArgs, CacheArgs, at_least_one, print, progress_bar};
use crate::loadgen;
use crate::loadgen::{Arrivals, Popularity, PromptWords, Report, Server, ServerKind, Workload};
use crate::model::DEFAULT_MODEL;
use crate::text::Text;

/// Arguments of `tombola bench serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address of the server.
    #[arg(long, default_value = "http://127.0.0.1:8000", help_heading = SERVER)]
    url: String,
    /// API that selects the adapter of a request: openai (by `model`) or llamacpp (by number).
    #[arg(long, default_value_t, help_heading = SERVER)]
    kind: ServerKind,
    /// API key, if the server needs one.
    #[arg(
        long,
        value_name = "KEY",
        env = "TOMBOLA_API_KEY",
        hide_env_values = true,
        help_heading = SERVER,
    )]
    api_key: Option<ApiKey>,
    /// Name of the base on the server [default: the first model that the server lists].
    #[arg(long, value_name = "NAME", help_heading = SERVER)]
    model: Option<String>,
    /// Adapters or tickets that requests name, separated by commas [default: none, only the base].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = SERVER)]
    adapters: Vec<String>,
    /// Distribution of requests over the adapters: uniform or zipf.
    #[arg(long, default_value_t, help_heading = LOAD)]
    popularity: Popularity,
    /// Requests in flight; the next one is sent when one ends.
    #[arg(
        long,
        value_name = "N",
        default_value = "16",
        value_parser = at_least_one,
        help_heading = LOAD,
    )]
    concurrency: usize,
    /// Requests per second, sent whether the server keeps up or not [default: as --concurrency
    /// allows].
    #[arg(
        long,
        value_name = "RATE",
        conflicts_with = "concurrency",
        value_parser = positive,
        help_heading = LOAD,
    )]
    rate: Option<f64>,
    /// Number of measured requests.
    #[arg(
        long,
        value_name = "N",
        default_value = "32",
        value_parser = at_least_one,
        help_heading = LOAD,
    )]
    requests: usize,
    /// Requests before the measurement starts; each adapter gets at least one.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = LOAD)]
    warmup: usize,
    /// Seed of prompts and arrivals; with another seed per round, no prefix cache can answer.
    #[arg(long, default_value_t = 0, help_heading = LOAD)]
    seed: u64,
    /// Tokens per prompt.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "64",
        value_parser = at_least_one,
        help_heading = LOAD,
    )]
    prompt_tokens: usize,
    /// Tokens that each request generates.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "64",
        value_parser = at_least_one,
        help_heading = LOAD,
    )]
    max_tokens: usize,
    /// Tokenizer that counts prompt tokens: a tokenizer.json, or a base as `tombola serve --model`
    /// takes it.
    #[arg(
        long,
        value_name = "FILE|BASE",
        default_value = DEFAULT_MODEL,
        help_heading = LOAD,
    )]
    tokenizer: String,
    #[command(flatten, next_help_heading = "Output")]
    cache: CacheArgs,
    /// Print JSON instead of a table.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola bench serve --adapters sql --concurrency 32 --requests 256
  tombola bench serve --adapters sql,smollm2-135m --popularity zipf --rate 8 --json
  tombola bench serve --url http://127.0.0.1:8080 --kind llamacpp --model base";

// Headings of `--help`, and of the flag tables in docs/.
const SERVER: &str = "Server";
const LOAD: &str = "Load";

/// Parses a number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above 0".to_owned()),
    }
}

/// Sends the requests and prints the report.
///
/// # Errors
/// The server or the tokenizer cannot be used, or a request failed.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let words = PromptWords::new(&tokenizer(&args.tokenizer, &args.cache)?)?;
    let server = Server::new(
        &args.url,
        args.kind,
        args.api_key.as_ref().map(ApiKey::secret),
        args.model.clone(),
        args.adapters.clone(),
    )?;
    let workload = Workload {
        requests: args.requests,
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        arrivals: match args.rate {
            Some(rate) => Arrivals::Open { rate },
            None => Arrivals::Closed {
                concurrency: args.concurrency,
            },
        },
        popularity: args.popularity,
        warmup: args.warmup,
        seed: args.seed,
    };
    let bar = progress_bar("requests", "{pos}/{len}", args.requests as u64);
    let report = loadgen::run(&server, &workload, &words, &|done| {
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        print(&format!("{:#}\n", described(args, &report)))?;
    } else {
        print(&report.to_string())?;
    }
    if report.failed > 0 {
        bail!("{} of {} requests failed", report.failed, report.requests);
    }
    Ok(())
}

/// The report with the parameters of the load, so that the file is self-describing.
fn described(args: &ServeArgs, report: &Report) -> serde_json::Value {
    json!({
        "url": args.url,
        "kind": args.kind.to_string(),
        "adapters": args.adapters,
        "popularity": args.popularity.to_string(),
        "concurrency": args.rate.is_none().then_some(args.concurrency),
        "rate": args.rate,
        "prompt_tokens": args.prompt_tokens,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "report": report,
    })
}

/// The tokenizer from a `tokenizer.json`, or from the files of a base.
fn tokenizer(name: &str, cache: &CacheArgs) -> anyhow::Result<Text> {
    let path = PathBuf::from(name);
    if path
        .file_name()
        .is_some_and(|file| file == "tokenizer.json")
    {
        let folder = path.parent().unwrap_or(Path::new("."));
        return Text::from_folder(folder).with_context(|| "--tokenizer");
    }
    let base = BaseArgs {
        model: name.to_owned(),
        cache: cache.clone(),
    };
    base.text().context("--tokenizer")
}
