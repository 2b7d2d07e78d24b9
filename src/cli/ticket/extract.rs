//! `tombola ticket extract`: a ticket from two models, the base and one tuned from it.

use anyhow::Context as _;
use clap::Args;
use indicatif::{HumanCount, ProgressBar};
use serde_json::json;

use super::{DtypeArgs, OutputArgs, TOOL, print};
use crate::cli::base::{CacheArgs, ModelFiles, density, parameter_bar};
use crate::ticket::top_k::Scope;
use crate::ticket::{Metadata, TensorDelta, Ticket, TicketError, validate_name};
use crate::train::{ExtractOptions, ExtractStage, Extracted, ModelPair, extract};

#[derive(Debug, Args)]
pub(super) struct ExtractArgs {
    /// Base that the ticket is for, as `tombola serve --model` takes it.
    #[arg(long, value_name = "MODEL", help_heading = "Models")]
    base: String,
    /// Model that was tuned from the base, given in the same way.
    #[arg(long, value_name = "MODEL", help_heading = "Models")]
    tuned: String,
    #[command(flatten, next_help_heading = "Models")]
    cache: CacheArgs,
    /// Share of the attention and MLP projection weights that the ticket keeps: above 0, at most 1.
    #[arg(long, value_name = "SHARE", value_parser = density, help_heading = "Method")]
    density: f64,
    /// Scope of the share: global (all parameters together) or tensor (each parameter).
    #[arg(long, default_value_t, help_heading = "Method")]
    scope: Scope,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  tombola ticket extract --base HuggingFaceTB/SmolLM2-135M --tuned ./tuned --density 0.01 \\
      --name mine --out adapters/mine.safetensors";

/// Extracts the ticket, writes it, and prints its contents.
pub(super) fn run(args: ExtractArgs) -> anyhow::Result<()> {
    validate_name(&args.output.name)?;
    let cache = args.cache.dir();
    let open = |model: &str, flag| ModelFiles::open(model, &cache).context(flag);
    let base = open(&args.base, "--base")?;
    let tuned = open(&args.tuned, "--tuned")?;
    if args.output.name == base.manifest.name {
        return Err(TicketError::ReservedName(args.output.name).into());
    }
    let extracted = extract_with_bars(&args, &base, &tuned)?;
    let tensors = extracted.tensors;
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let metadata = Metadata {
        license: args.output.license.clone(),
        training: Some(json!({
            "extracted_from": tuned.manifest.name,
            "tuned_fingerprint": tuned.manifest.fingerprint.to_string(),
            "scope": args.scope.to_string(),
            "tool": TOOL,
        })),
        ..Metadata::new(&args.output.name, &base.manifest, nonzeros)
    };
    let ticket = Ticket::new(metadata, tensors)?;
    let mut text = args.output.write(&ticket)?;
    text += &format!(
        "\n{} of the {} weights that differ are kept\n",
        HumanCount(nonzeros as u64),
        HumanCount(extracted.moved as u64)
    );
    if let Some(differences) = extracted.non_adaptable {
        text += &format!("warning: {differences}; the ticket does not hold these differences\n");
    }
    print(&text)
}

fn extract_with_bars(
    args: &ExtractArgs,
    base: &ModelFiles,
    tuned: &ModelFiles,
) -> anyhow::Result<Extracted> {
    let pair = ModelPair {
        base: base.on_disk(),
        tuned: tuned.on_disk(),
    };
    let options = ExtractOptions {
        density: args.density,
        scope: args.scope,
        dtype: args.dtype.dtype.into(),
    };
    let mut current: Option<(ExtractStage, ProgressBar)> = None;
    let extracted = extract(&pair, options, &mut |stage, done, total| {
        if current.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            let what = match stage {
                ExtractStage::Compare => "comparing the models",
                ExtractStage::Collect => "collecting the differences",
            };
            if let Some((_, bar)) = current.replace((stage, parameter_bar(what, total))) {
                bar.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &current {
            bar.set_position(done as u64);
        }
    });
    if let Some((_, bar)) = current {
        bar.finish_and_clear();
    }
    Ok(extracted?)
}
