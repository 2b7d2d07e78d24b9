//! `tombola bench device`: a synthetic base against the memory bandwidth of the device.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::cli::base::{CacheArgs, ComputeArgs, at_least_one, print};
use crate::device_bench::{self, Options, Shape};

/// Arguments of `tombola bench device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Shape of the synthetic base: 7b (Llama 2), 1b (TinyLlama), 135m (SmolLM2) or tiny.
    #[arg(long, default_value = "135m", help_heading = "Measurement")]
    shape: Shape,
    /// Positions per sequence.
    #[arg(
        long,
        value_name = "N",
        default_value = "128",
        value_parser = at_least_one,
        help_heading = "Measurement",
    )]
    context: usize,
    /// Runs per measurement; the median is reported.
    #[arg(
        long,
        value_name = "N",
        default_value = "9",
        value_parser = at_least_one,
        help_heading = "Measurement",
    )]
    repeats: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// File to write the figures to as JSON, in addition to the printed table [default: none].
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola bench device --shape 1b --dtype bf16
  tombola bench device --shape 7b --dtype bf16 --json figures.json";

/// Measures the device, prints the table, and writes the JSON file if one is requested.
///
/// # Errors
/// The device cannot be used, has too little memory, or the file cannot be written.
pub fn run(args: &DeviceArgs) -> anyhow::Result<()> {
    let options = Options {
        shape: args.shape,
        load: args.compute.load_options(),
        context: args.context,
        repeats: args.repeats,
        threads: args.compute.threads(),
    };
    let report = device_bench::run(&options, &args.cache.dir())?;
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", report.json()))
            .with_context(|| path.display().to_string())?;
    }
    print(&report.to_string())
}
