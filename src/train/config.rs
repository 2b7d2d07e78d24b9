//! Configuration of a training run: everything except base and data that determines the ticket's
//! bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::optimizer::OptimizerKind;
use super::schedule::{Decay, Schedule};
use crate::ticket::top_k::Scope;

/// Score by which the mask ranks weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// `|w_T − w_0|` after a full fine-tune, as in the paper.
    TaskVector,
    /// `Σ |g|` over the calibration steps, at the weights that training starts from.
    Gradient,
    /// `|w|·Σ |g|`, at the same weights.
    Saliency,
    /// Random scores drawn from the seed, as a control.
    Random,
}

const SCORES: [(&str, Score); 4] = [
    ("task-vector", Score::TaskVector),
    ("gradient", Score::Gradient),
    ("saliency", Score::Saliency),
    ("random", Score::Random),
];

impl FromStr for Score {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SCORES.iter().find(|(name, _)| *name == text);
        let names = SCORES.map(|(name, _)| name).join(", ");
        let error = || format!("{text:?} is not a score: expected one of {names}");
        found.map(|(_, score)| *score).ok_or_else(error)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = SCORES.iter().find(|(_, score)| score == self);
        f.write_str(found.expect("every score has a name").0)
    }
}

/// Phase of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Trains or scores every weight, to choose the mask.
    Calibrate,
    /// Trains the positions of the mask, from the start again.
    Adapt,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Calibrate => "calibrate",
            Self::Adapt => "adapt",
        })
    }
}

/// Steps and peak learning rate of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PhaseConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Peak learning rate.
    #[serde(serialize_with = "as_written")]
    pub learning_rate: f32,
}

/// Serializes an f32 with the shortest digits that identify it, not with those of its f64.
fn as_written<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let shortest: f64 = number.to_string().parse().expect("printed floats parse");
    serializer.serialize_f64(shortest)
}

fn option_as_written<S: Serializer>(
    number: &Option<f32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => as_written(number, serializer),
        None => serializer.serialize_none(),
    }
}

/// Configuration of a training run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    /// Name of the ticket.
    pub name: String,
    /// Share of the adaptable weights that the ticket may touch, in (0, 1].
    pub density: f64,
    /// Score by which the mask ranks the weights.
    pub score: Score,
    /// Whether the density is that of the whole model or of each parameter.
    pub scope: Scope,
    /// The calibrate phase; unused if the mask needs no calibration.
    pub calibrate: PhaseConfig,
    /// The adapt phase.
    pub adapt: PhaseConfig,
    /// Rows per forward and backward pass.
    pub batch: usize,
    /// Batches whose gradients are accumulated per optimizer step.
    pub accumulate: usize,
    /// Optimizer of both phases.
    pub optimizer: OptimizerKind,
    /// Decoupled weight decay, applied to matrices.
    #[serde(serialize_with = "as_written")]
    pub weight_decay: f32,
    /// Share of a phase's steps during which the learning rate rises.
    #[serde(serialize_with = "as_written")]
    pub warmup: f32,
    /// Decay of the learning rate over a phase.
    pub decay: Decay,
    /// Maximum gradient norm; larger gradients are scaled down to it. `None` does not clip.
    #[serde(serialize_with = "option_as_written")]
    pub clip: Option<f32>,
    /// Gradient checkpointing: keep only the input of each layer and recompute the rest in the
    /// backward pass.
    pub checkpointing: bool,
    /// Reshuffle the rows each epoch; otherwise they keep the order of the file.
    pub shuffle: bool,
    /// Seed of the row order and of random scores.
    pub seed: u64,
}

impl TrainConfig {
    /// Steps and peak learning rate of a phase.
    pub fn phase(&self, phase: Phase) -> PhaseConfig {
        match phase {
            Phase::Calibrate => self.calibrate,
            Phase::Adapt => self.adapt,
        }
    }

    /// Learning rate schedule of a phase.
    pub(super) fn schedule(&self, phase: Phase) -> Schedule {
        let PhaseConfig {
            steps,
            learning_rate: peak,
        } = self.phase(phase);
        Schedule {
            peak,
            steps,
            warmup: self.warmup,
            decay: self.decay,
        }
    }

    /// Rows per optimizer step.
    pub(super) fn rows_per_step(&self) -> usize {
        self.batch * self.accumulate
    }
}
