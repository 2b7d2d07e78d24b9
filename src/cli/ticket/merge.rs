//! `tombola ticket merge`: several tickets as one.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::summary::Summary;
use super::{Dtype, naming, read};
use crate::cli::base::{BaseArgs, print};
use crate::cli::eval::ticket_file;
use crate::ticket::merge::merge;

/// Arguments of `tombola ticket merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The tickets: files, or names of tickets in the ticket folder.
    #[arg(required = true, value_name = "TICKET")]
    of: Vec<String>,
    #[command(flatten)]
    base: BaseArgs,
    /// The ticket folder, where NAME.safetensors is looked up.
    #[arg(
        long,
        value_name = "DIR",
        env = "TOMBOLA_TICKETS",
        default_value = "adapters"
    )]
    tickets: PathBuf,
    /// What each ticket's deltas are multiplied by, in their order [default: 1 each].
    #[arg(
        long,
        value_name = "SCALES",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    scale: Vec<f32>,
    /// The name that requests will use.
    #[arg(long)]
    name: String,
    /// The ticket file to write; replaced if it exists.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How deltas are stored.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// Licence of the ticket, for example `CC-BY-4.0`.
    #[arg(long)]
    license: Option<String>,
}

/// Merges the tickets and says what came of it.
pub fn run(args: MergeArgs) -> anyhow::Result<()> {
    let mut scales = args.scale;
    if scales.is_empty() {
        scales = vec![1.0; args.of.len()];
    }
    if scales.len() != args.of.len() || scales.iter().any(|scale| !scale.is_finite()) {
        let (scales, tickets) = (scales.len(), args.of.len());
        bail!("--scale: {scales} scales for {tickets} tickets, expected a finite number for each");
    }
    let paths = args.of.iter().map(|name| ticket_file(name, &args.tickets));
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
    let merged = merge(&bound, &base, &args.name, args.dtype.into(), args.license)?;
    merged.write(&args.out)?;
    let out = args.out.display();
    print(&format!("wrote {out}\n\n{}", Summary::new(&merged)))
}
