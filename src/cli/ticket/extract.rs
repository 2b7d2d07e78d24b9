//! `tombola ticket extract`: a ticket from two models, the base and one that was tuned from it.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::super::base::{CacheArgs, ModelFiles, density, parameter_bar};
use super::{OutputArgs, TOOL, print};
use crate::ticket::top_k::{Scope, top_k_positions};
use crate::ticket::{
    BaseManifest, DeltaDtype, Deltas, Metadata, TensorDelta, Ticket, TicketError, validate_name,
};

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
}

pub(super) const EXAMPLES: &str = "\
Examples:
  tombola ticket extract --base HuggingFaceTB/SmolLM2-135M --tuned ./tuned --density 0.01 \\
      --name mine --out adapters/mine.safetensors";

/// Compares the models, keeps the largest differences, and writes them.
pub(super) fn run(args: ExtractArgs) -> anyhow::Result<()> {
    validate_name(&args.output.name)?;
    let cache = args.cache.dir();
    let open = |model: &str, flag| ModelFiles::open(model, &cache).context(flag);
    let pair = Pair {
        base: open(&args.base, "--base")?,
        tuned: open(&args.tuned, "--tuned")?,
    };
    let base = &pair.base.manifest;
    if args.output.name == base.name {
        return Err(TicketError::ReservedName(args.output.name).into());
    }
    pair.check_comparable()?;
    let (scores, elsewhere) = pair.compare()?;
    let moved = scores.values().flatten().filter(|&&s| s > 0.0).count();
    let kept = top_k_positions(&scores, args.density, args.scope)?;
    drop(scores);
    let tensors = pair.deltas(&kept, args.output.dtype.into())?;
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    if nonzeros == 0 {
        bail!(pair.nothing_kept(moved, &elsewhere, args.density));
    }
    let metadata = Metadata {
        license: args.output.license.clone(),
        training: Some(json!({
            "extracted_from": pair.tuned.manifest.name,
            "tuned_fingerprint": pair.tuned.manifest.fingerprint.to_string(),
            "scope": args.scope.to_string(),
            "tool": TOOL,
        })),
        ..Metadata::new(&args.output.name, base, nonzeros)
    };
    let ticket = Ticket::new(metadata, tensors)?;
    let mut text = args.output.write(&ticket)?;
    text += &format!(
        "\n{} of the {} weights that differ are kept\n",
        HumanCount(nonzeros as u64),
        HumanCount(moved as u64)
    );
    if let Some(elsewhere) = elsewhere.describe() {
        text += &format!("warning: {elsewhere}; the ticket does not hold that\n");
    }
    print(&text)
}

/// The base, and what was tuned from it.
struct Pair {
    base: ModelFiles,
    tuned: ModelFiles,
}

/// Where the models differ in what tickets cannot carry.
#[derive(Default)]
struct Elsewhere {
    parameters: usize,
    largest: f32,
}

impl Elsewhere {
    /// In words, if there is anything.
    fn describe(&self) -> Option<String> {
        let (parameters, largest) = (self.parameters, self.largest);
        (parameters > 0).then(|| {
            format!(
                "the models differ by up to {largest:e} in {parameters} of the parameters that \
                 tickets cannot carry (embeddings, norms, biases, head)"
            )
        })
    }
}

impl Pair {
    /// Checks that the models have the same parameters, which mean the same.
    fn check_comparable(&self) -> anyhow::Result<()> {
        let (base, tuned) = (&self.base.manifest, &self.tuned.manifest);
        let names = format!("`{}` and `{}`", base.name, tuned.name);
        let shape = |manifest: &BaseManifest, parameter: &str| {
            let info = manifest.parameters.get(parameter);
            info.map_or("missing".to_owned(), |info| format!("{:?}", info.shape))
        };
        for parameter in base.parameters.keys().chain(tuned.parameters.keys()) {
            let (found, expected) = (shape(tuned, parameter), shape(base, parameter));
            if found != expected {
                bail!(
                    "{names} are not of one shape: parameter `{parameter}` is {expected} in the \
                     base, {found} in the tuned model"
                );
            }
        }
        let heads = |model: &ModelFiles| {
            let config = model.checkpoint.config();
            [config.heads, config.kv_heads]
        };
        let (found, expected) = (heads(&self.tuned), heads(&self.base));
        if found != expected {
            bail!(
                "{names} are not of one shape: query and key heads are {expected:?} in the base, \
                 {found:?} in the tuned model"
            );
        }
        Ok(())
    }

    /// |difference| of each weight that tickets can carry, and what differs besides.
    fn compare(&self) -> anyhow::Result<(BTreeMap<String, Vec<f32>>, Elsewhere)> {
        let parameters = &self.base.manifest.parameters;
        let bar = parameter_bar("comparing the models", parameters.len());
        let mut scores = BTreeMap::new();
        let mut elsewhere = Elsewhere::default();
        for (parameter, info) in parameters {
            let mut distances = self.differences(parameter, &info.shape)?;
            distances.iter_mut().for_each(|d| *d = d.abs());
            if info.adaptable {
                scores.insert(parameter.clone(), distances);
            } else if distances.iter().any(|&d| d != 0.0) {
                elsewhere.parameters += 1;
                elsewhere.largest = distances.into_iter().fold(elsewhere.largest, f32::max);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((scores, elsewhere))
    }

    /// What is to be added to each weight of the base.
    fn differences(&self, parameter: &str, shape: &[usize]) -> anyhow::Result<Vec<f32>> {
        let values = |model: &ModelFiles| {
            let tensor = model.checkpoint.load(parameter, shape)?;
            anyhow::Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        let (mut values, base) = (values(&self.tuned)?, values(&self.base)?);
        values.iter_mut().zip(base).for_each(|(v, base)| *v -= base);
        Ok(values)
    }

    /// The differences at the positions kept, of the parameters that have any.
    fn deltas(
        &self,
        kept: &BTreeMap<String, Vec<usize>>,
        dtype: DeltaDtype,
    ) -> anyhow::Result<BTreeMap<String, TensorDelta>> {
        let bar = parameter_bar("taking the differences", kept.len());
        let mut tensors = BTreeMap::new();
        for (parameter, positions) in kept {
            bar.inc(1);
            if positions.is_empty() {
                continue;
            }
            let shape = self.base.manifest.projection(parameter)?;
            let differences = self.differences(parameter, &shape)?;
            let deltas = positions.iter().map(|&p| differences[p]).collect();
            let delta = TensorDelta::from_flat(shape, positions, Deltas::from_f32(deltas, dtype));
            let delta = delta.map_err(|fault| TicketError::Delta {
                parameter: parameter.clone(),
                fault,
            })?;
            tensors.insert(parameter.clone(), delta);
        }
        bar.finish_and_clear();
        Ok(tensors)
    }

    /// Why there is no ticket.
    fn nothing_kept(&self, moved: usize, elsewhere: &Elsewhere, density: f64) -> String {
        let (base, tuned) = (&self.base.manifest, &self.tuned.manifest);
        let names = format!("`{}` and `{}`", base.name, tuned.name);
        if moved > 0 {
            let weights = HumanCount(base.adaptable_weights() as u64);
            return format!(
                "a density of {density} keeps none of the {weights} weights of {names}"
            );
        }
        match elsewhere.describe() {
            Some(elsewhere) => {
                format!("there is nothing to extract: {elsewhere}, and nowhere else")
            }
            None => format!("there is nothing to extract: {names} hold the same weights"),
        }
    }
}
