//! Ticket extraction: the largest differences between a base and a model tuned from it.

use std::collections::BTreeMap;

use indicatif::HumanCount;

use super::mask::{Positions, Scores};
use super::task_vector;
use crate::model::{Checkpoint, ModelError};
use crate::ticket::top_k::{Scope, TopKError, top_k_positions};
use crate::ticket::{BaseManifest, DeltaDtype, TensorDelta, TicketError};

/// A model on disk.
#[derive(Clone, Copy)]
pub struct ModelOnDisk<'a> {
    pub manifest: &'a BaseManifest,
    pub checkpoint: &'a Checkpoint,
}

/// The base of a ticket, and the model tuned from it.
pub struct ModelPair<'a> {
    pub base: ModelOnDisk<'a>,
    pub tuned: ModelOnDisk<'a>,
}

/// Share of the adaptable weights to keep, and the format of their deltas.
#[derive(Clone, Copy, Debug)]
pub struct ExtractOptions {
    /// Above 0, at most 1.
    pub density: f64,
    pub scope: Scope,
    pub dtype: DeltaDtype,
}

/// Stage of an extraction: a pass over all parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtractStage {
    /// Ranks every weight by its distance to the base.
    Compare,
    /// Reads the differences at the positions that are kept.
    Collect,
}

/// Called with the stage, its number of parameters done, and their total number.
pub type ExtractProgress<'a> = dyn FnMut(ExtractStage, usize, usize) + 'a;

/// Result of an extraction.
pub struct Extracted {
    /// The kept deltas by parameter; parameters without any are left out.
    pub tensors: BTreeMap<String, TensorDelta>,
    /// Adaptable weights that differ, kept or not.
    pub moved: usize,
    /// Differences that the ticket cannot hold, if there are any.
    pub non_adaptable: Option<NonAdaptable>,
}

/// Differences in parameters that tickets cannot adapt: embeddings, norms, biases, the head.
#[derive(Clone, Copy, Debug)]
pub struct NonAdaptable {
    /// Parameters that differ.
    pub parameters: usize,
    /// The largest `|tuned − base|` in them.
    pub largest: f32,
}

impl std::fmt::Display for NonAdaptable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            parameters,
            largest,
        } = self;
        write!(
            f,
            "the models differ by up to {largest:e} in {parameters} of the parameters that tickets \
             cannot carry (embeddings, norms, biases, head)"
        )
    }
}

/// Reason why no ticket could be extracted; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error(
        "`{base}` and `{tuned}` differ in architecture: parameter `{parameter}` is {expected} in \
         the base, {found} in the tuned model"
    )]
    Shape {
        base: String,
        tuned: String,
        parameter: String,
        expected: String,
        found: String,
    },
    #[error(
        "`{base}` and `{tuned}` differ in architecture: query and key heads are {expected:?} in \
         the base, {found:?} in the tuned model"
    )]
    Heads {
        base: String,
        tuned: String,
        expected: [usize; 2],
        found: [usize; 2],
    },
    #[error(
        "a density of {density} keeps none of the {} weights of `{base}` and `{tuned}`",
        HumanCount(*weights as u64)
    )]
    NothingKept {
        base: String,
        tuned: String,
        density: f64,
        weights: usize,
    },
    #[error("there is nothing to extract: {0}, and the adaptable parameters are equal")]
    OnlyNonAdaptable(NonAdaptable),
    #[error("there is nothing to extract: `{base}` and `{tuned}` hold the same weights")]
    Equal { base: String, tuned: String },
    #[error(transparent)]
    Select(#[from] TopKError),
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

/// Extracts the largest differences of a pair. One parameter of each model is in memory at a time,
/// plus 4 bytes per adaptable weight for its distance.
///
/// # Errors
/// The models differ in architecture, cannot be read, or no difference is kept.
pub fn extract(
    pair: &ModelPair,
    options: ExtractOptions,
    progress: &mut ExtractProgress,
) -> Result<Extracted, ExtractError> {
    pair.check_comparable()?;
    let (scores, non_adaptable) = pair.compare(progress)?;
    let moved = scores.values().flatten().filter(|&&s| s > 0.0).count();
    let kept = top_k_positions(&scores, options.density, options.scope)?;
    drop(scores);
    let tensors = pair.deltas(&kept, options.dtype, progress)?;
    if tensors.is_empty() {
        return Err(pair.nothing_kept(moved, non_adaptable, options.density));
    }
    Ok(Extracted {
        tensors,
        moved,
        non_adaptable,
    })
}

impl ModelPair<'_> {
    fn names(&self) -> (String, String) {
        let (base, tuned) = (&self.base.manifest.name, &self.tuned.manifest.name);
        (base.clone(), tuned.clone())
    }

    /// Checks that the models have the same parameters, with the same meaning.
    fn check_comparable(&self) -> Result<(), ExtractError> {
        let (base, tuned) = self.names();
        let shape = |manifest: &BaseManifest, parameter: &str| {
            let info = manifest.parameters.get(parameter);
            info.map_or("missing".to_owned(), |info| format!("{:?}", info.shape))
        };
        let (base_manifest, tuned_manifest) = (self.base.manifest, self.tuned.manifest);
        for parameter in base_manifest
            .parameters
            .keys()
            .chain(tuned_manifest.parameters.keys())
        {
            let (found, expected) = (
                shape(tuned_manifest, parameter),
                shape(base_manifest, parameter),
            );
            if found != expected {
                return Err(ExtractError::Shape {
                    base,
                    tuned,
                    parameter: parameter.clone(),
                    expected,
                    found,
                });
            }
        }
        let [expected, found] = [&self.base, &self.tuned].map(|model| {
            let config = model.checkpoint.config();
            [config.heads, config.kv_heads]
        });
        if found != expected {
            return Err(ExtractError::Heads {
                base,
                tuned,
                expected,
                found,
            });
        }
        Ok(())
    }

    /// Distance of every adaptable weight, and the differences in all other parameters.
    fn compare(
        &self,
        progress: &mut ExtractProgress,
    ) -> Result<(Scores, Option<NonAdaptable>), ExtractError> {
        let parameters = &self.base.manifest.parameters;
        let mut scores = Scores::new();
        let (mut differing, mut largest) = (0, 0f32);
        for (done, (parameter, info)) in parameters.iter().enumerate() {
            progress(ExtractStage::Compare, done, parameters.len());
            let tuned = self.tuned.checkpoint.load(parameter, &info.shape)?;
            let base = self.base.checkpoint.load(parameter, &info.shape)?;
            let distances = task_vector::distance(tuned, base)?;
            if info.adaptable {
                scores.insert(parameter.clone(), distances);
            } else if distances.iter().any(|&d| d != 0.0) {
                differing += 1;
                largest = distances.into_iter().fold(largest, f32::max);
            }
        }
        let non_adaptable = (differing > 0).then_some(NonAdaptable {
            parameters: differing,
            largest,
        });
        Ok((scores, non_adaptable))
    }

    /// The differences at the kept positions, of the parameters that have any.
    fn deltas(
        &self,
        kept: &Positions,
        dtype: DeltaDtype,
        progress: &mut ExtractProgress,
    ) -> Result<BTreeMap<String, TensorDelta>, ExtractError> {
        let mut tensors = BTreeMap::new();
        for (done, (parameter, positions)) in kept.iter().enumerate() {
            progress(ExtractStage::Collect, done, kept.len());
            if positions.is_empty() {
                continue;
            }
            let shape = self.base.manifest.projection(parameter)?;
            let tuned = self.tuned.checkpoint.load(parameter, &shape)?;
            let base = self.base.checkpoint.load(parameter, &shape)?;
            let differences = task_vector::difference(tuned, base)?;
            let deltas = positions.iter().map(|&p| differences[p]).collect();
            let delta = task_vector::delta(parameter, shape, positions, deltas, dtype)?;
            tensors.insert(parameter.clone(), delta);
        }
        Ok(tensors)
    }

    fn nothing_kept(
        &self,
        moved: usize,
        non_adaptable: Option<NonAdaptable>,
        density: f64,
    ) -> ExtractError {
        let (base, tuned) = self.names();
        match non_adaptable {
            _ if moved > 0 => ExtractError::NothingKept {
                base,
                tuned,
                density,
                weights: self.base.manifest.adaptable_weights(),
            },
            Some(non_adaptable) => ExtractError::OnlyNonAdaptable(non_adaptable),
            None => ExtractError::Equal { base, tuned },
        }
    }
}
