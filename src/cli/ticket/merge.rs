//! `tombola ticket merge`: merges tickets into one.

use anyhow::bail;
use clap::Args;

use super::{Dtype, OUTPUT, OutputArgs, name_file, read};
use crate::cli::base::{BaseArgs, print};
use crate::cli::ticket_folder::FolderArgs;
use crate::ticket::DeltaDtype;
use crate::ticket::merge::{merge, merged_dtype};

/// Arguments of `tombola ticket merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Tickets to merge: files, or names in the ticket folder.
    #[arg(required = true, value_name = "TICKET", help_heading = "Merge")]
    inputs: Vec<String>,
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
    /// Data type of the stored deltas: bf16 or f32 [default: f32 if a ticket's are, else bf16].
    #[arg(long, value_enum, hide_possible_values = true, help_heading = OUTPUT)]
    dtype: Option<Dtype>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  tombola ticket merge sql chat --name both --out both.safetensors
  tombola ticket merge sql chat --scale 1,0.5 --name both --out both.safetensors";

/// Merges the tickets, writes the result, and prints a summary.
pub fn run(args: MergeArgs) -> anyhow::Result<()> {
    let mut scales = args.scale;
    if scales.is_empty() {
        scales = vec![1.0; args.inputs.len()];
    }
    if scales.len() != args.inputs.len() || scales.iter().any(|scale| !scale.is_finite()) {
        bail!(
            "--scale: {} scales for {} tickets, expected one finite number per ticket",
            scales.len(),
            args.inputs.len()
        );
    }
    // All files are read first, so that a broken one fails before the base is fetched.
    let mut tickets = Vec::with_capacity(scales.len());
    for name in &args.inputs {
        let path = args.folder.find(name)?;
        tickets.push((read(&path)?, path));
    }
    let base = args.base.manifest()?;
    let mut bound = Vec::with_capacity(scales.len());
    for ((ticket, path), scale) in tickets.into_iter().zip(scales) {
        let ticket = ticket
            .bind(&base, false)
            .map_err(|error| name_file(&path, error))?;
        bound.push((ticket, scale));
    }
    let OutputArgs { name, license, .. } = &args.output;
    let dtype = args.dtype.map_or_else(
        || merged_dtype(bound.iter().map(|(ticket, _)| ticket.widest())),
        DeltaDtype::from,
    );
    let merged = merge(&bound, &base, name, dtype, license.clone())?;
    print(&args.output.write(&merged)?)
}
