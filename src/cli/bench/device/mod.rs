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
    /// The base's shape: 7b, 1b, 135m or tiny.
    #[arg(long, default_value = "135m")]
    shape: Shape,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Positions that each sequence has.
    #[arg(long, value_name = "N", default_value = "128", value_parser = at_least_one)]
    context: usize,
    /// Runs of one thing; their median counts.
    #[arg(long, value_name = "N", default_value = "9", value_parser = at_least_one)]
    repeats: usize,
    /// Write the figures there as JSON, besides the table that is printed.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

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
