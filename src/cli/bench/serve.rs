//! `tombola bench serve`: measure a server as its clients see it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::cli::base::{BaseArgs, CacheArgs, at_least_one, bar_of, print};
use crate::loadgen;
use crate::loadgen::{Arrivals, Kind, Popularity, Report, Server, Words, Work};
use crate::model::DEFAULT_MODEL;
use crate::text::Text;

/// Arguments of `tombola bench serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// How it is told which adapter a request wants: by `model` (openai), or by number (llamacpp).
    #[arg(long, default_value_t)]
    kind: Kind,
    /// The base's name there [default: the first model that it names].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Adapters or tickets that requests name, separated by commas; none: the base answers.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    adapters: Vec<String>,
    /// How often each is named: uniform or zipf.
    #[arg(long, default_value_t)]
    popularity: Popularity,
    /// The tokenizer that prompts are counted by: a tokenizer.json, or any base that --model of `serve`
    /// takes.
    #[arg(long, value_name = "FILE|BASE", default_value = DEFAULT_MODEL)]
    tokenizer: String,
    #[command(flatten)]
    cache: CacheArgs,
    /// Requests in flight; the next is sent when one ends.
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least_one)]
    concurrency: usize,
    /// Send so many requests a second instead, whether the server keeps up or not.
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = positive)]
    rate: Option<f64>,
    /// Requests in all.
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one)]
    requests: usize,
    /// Tokens of each prompt.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = at_least_one)]
    prompt_tokens: usize,
    /// Tokens that each request generates.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = at_least_one)]
    max_tokens: usize,
    /// Requests before the clock starts; each adapter gets one in any case.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Decides prompts and arrivals: take another for each round, or a prefix cache answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above 0".to_owned()),
    }
}

/// Loads a server and prints what was measured.
///
/// # Errors
/// The server or the tokenizer cannot be used, or a request failed.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let words = Words::new(&tokenizer(&args.tokenizer, &args.cache)?)?;
    let server = Server::new(
        &args.url,
        args.kind,
        args.model.clone(),
        args.adapters.clone(),
    )?;
    let work = Work {
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
    let bar = bar_of("requests", "{pos}/{len}", args.requests as u64);
    let report = loadgen::run(&server, &work, &words, &|done| {
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

/// The report with what was asked for, so that a file of it says what it is about.
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
