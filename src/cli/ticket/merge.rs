//! `tombola ticket merge`: several tickets as one.

use anyhow::bail;
use clap::Args;

use super::{OutputArgs, naming, read};
use crate::cli::base::{BaseArgs, print};
use crate::cli::ticket_folder::FolderArgs;
use crate::ticket::merge::merge;

/// Arguments of `tombola ticket merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Tickets to merge: files, or names in the ticket folder.
    #[arg(required = true, value_name = "TICKET", help_heading = "Merge")]
    tickets: Vec<String>,
    /// Factors of the tickets' deltas, in the order of the tickets [default: 1 each].
    #[arg(
        long,
        value_name = "SCALES",
        value_delimiter = ',',
        allow_negative_numbers = true,
        help_heading = "Merge"
    )]
    scale: Vec<f32>,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  tombola ticket merge sql chat --name both --out both.safetensors
  tombola ticket merge sql chat --scale 1,0.5 --name both --out both.safetensors";

/// Merges the tickets and says what came of it.
pub fn run(args: MergeArgs) -> anyhow::Result<()> {
    let mut scales = args.scale;
    if scales.is_empty() {
        scales = vec![1.0; args.tickets.len()];
    }
    if scales.len() != args.tickets.len() || scales.iter().any(|scale| !scale.is_finite()) {
        let (scales, tickets) = (scales.len(), args.tickets.len());
        bail!("--scale: {scales} scales for {tickets} tickets, expected a finite number for each");
    }
    let paths = args.tickets.iter().map(|name| args.folder.find(name));
    let paths = paths.collect::<anyhow::Result<Vec<_>>>()?;
    let read = paths.iter().map(|path| read(path));
    let tickets = read.collect::<anyhow::Result<Vec<_>>>()?;
    let base = args.base.manifest()?;
    let bound = tickets
        .into_iter()
        .zip(&paths)
        .zip(scales)
        .map(|((ticket, path), scale)| {
            let bound = ticket
                .bind(&base, false)
                .map_err(|error| naming(path, error))?;
            Ok((bound, scale))
        });
    let bound = bound.collect::<anyhow::Result<Vec<_>>>()?;
    let (name, dtype, license) = (
        &args.output.name,
        args.output.dtype.into(),
        args.output.license.clone(),
    );
    let merged = merge(&bound, &base, name, dtype, license)?;
    print(&args.output.write(&merged)?)
}
