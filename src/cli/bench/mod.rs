//! `tombola bench`: one file per benchmark of the command line. The load client of `bench serve`
//! is [`crate::loadgen`], the measurements of `bench device` are [`crate::device_bench`]; the
//! microbenchmarks of `cargo bench` are in `benches/`.

mod costs;
mod device;
mod serve;

use clap::{Args, Subcommand};

/// Arguments of `tombola bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send requests to an OpenAI-style server, and measure throughput and latencies.
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeArgs>),
    /// Measure the costs of steps and tickets on this machine, which --ticket-mode auto decides by.
    #[command(after_help = costs::EXAMPLES)]
    Costs(Box<costs::CostsArgs>),
    /// Measure steps, swaps and overlays of a synthetic base against the memory bandwidth of the
    /// device.
    #[command(after_help = device::EXAMPLES)]
    Device(Box<device::DeviceArgs>),
}

/// Runs the benchmark.
///
/// # Errors
/// The error of the benchmark.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Serve(args) => serve::run(args),
        Command::Costs(args) => costs::run(args),
        Command::Device(args) => device::run(args),
    }
}
