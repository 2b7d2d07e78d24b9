//! `tombola bench device`: a base of made-up weights against what the device's memory allows.

mod measure;
mod report;
mod shape;

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::cli::base::{CacheArgs, ComputeArgs, at_least_one, print};
use crate::kernels;
use crate::model::{Base, Checkpoint, LoadOptions};
use measure::Bench;
use shape::Shape;

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
    /// File to write the figures to as JSON, besides the printed table [default: none].
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

pub const EXAMPLES: &str = "\
Examples:
  tombola bench device --shape 1b --dtype bf16
  tombola bench device --shape 7b --dtype bf16 --device cuda --json figures.json";

/// Makes the base, measures, prints and writes.
///
/// # Errors
/// The device cannot be used, has no room, or the file cannot be written.
pub fn run(args: &DeviceArgs) -> anyhow::Result<()> {
    let config = args.shape.config(args.context);
    let options = LoadOptions {
        max_positions: Some(args.context),
        ..args.compute.load_options()
    };
    let checkpoint = Checkpoint::synthetic(config);
    let name = args.shape.to_string();
    let base = Base::load(&name, &checkpoint, &options, &args.cache.dir(), &mut |_| ())?;
    let pool = kernels::Pool::new(args.compute.threads())?;
    let about = report::About {
        shape: name,
        dtype: args.compute.dtype.to_string(),
        device: base.device_name(),
        threads: args.compute.threads(),
        context: args.context,
    };
    let mut bench = Bench::new(base, args.context, args.repeats)?;
    let figures = pool.install(|| bench.run())?;
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report::json(&about, &figures));
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    print(&report::table(&about, &figures))
}
