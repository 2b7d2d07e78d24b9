//! `tombola bench`: measure a server as its clients see it, what the resident base costs, or a device.

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
    /// Load an OpenAI-style server with requests, and measure throughput and latencies.
    Serve(Box<serve::ServeArgs>),
    /// Measure what steps and tickets cost on this machine: what --ticket-mode auto decides by.
    Costs(Box<costs::CostsArgs>),
    /// Measure steps, swaps and overlays of a made-up base against what the device's memory allows.
    Device(Box<device::DeviceArgs>),
}

/// Runs what was asked for.
///
/// # Errors
/// Whatever the subcommand reports.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Serve(args) => serve::run(args),
        Command::Costs(args) => costs::run(args),
        Command::Device(args) => device::run(args),
    }
}
