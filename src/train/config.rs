//! What a training run does: everything that decides the ticket's bytes, besides base and data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::optimizer::OptimizerKind;
use super::schedule::{Decay, Schedule};
use crate::ticket::top_k::Scope;

/// What weights are ranked by when the mask is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// `|w_T − w_0|` after a full fine-tune: the paper's.
    TaskVector,
    /// `Σ |g|` over the calibration's steps, at the weights that training starts from.
    Gradient,
    /// `|w|·Σ |g|`, at the same weights.
    Saliency,
    /// Drawn from the seed: the control.
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
        let error = || format!("{text:?} is not a score: one of {names}");
        found.map(|(_, score)| *score).ok_or_else(error)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = SCORES.iter().find(|(_, score)| score == self);
        f.write_str(found.expect("every score has a name").0)
    }
}

/// The two times that something is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Calibrate,
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

/// Steps of a phase and the learning rate at its peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PhaseConfig {
    pub steps: usize,
    #[serde(serialize_with = "as_written")]
    pub learning_rate: f32,
}

/// Writes a number by its shortest digits, not by those of its f32 widened.
fn as_written<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let shortest: f64 = number.to_string().parse().expect("a number's own digits");
    serializer.serialize_f64(shortest)
}

fn as_written_if_any<S: Serializer>(
    number: &Option<f32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => as_written(number, serializer),
        None => serializer.serialize_none(),
    }
}

/// How a ticket is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    /// The ticket's name.
    pub name: String,
    /// The share of adaptable weights that the ticket may touch, in (0, 1].
    pub density: f64,
    pub score: Score,
    pub scope: Scope,
    pub calibrate: PhaseConfig,
    pub adapt: PhaseConfig,
    /// Rows that go through the decoder at once.
    pub batch: usize,
    /// Batches that one step of the optimizer sums over.
    pub accumulate: usize,
    pub optimizer: OptimizerKind,
    #[serde(serialize_with = "as_written")]
    pub weight_decay: f32,
    /// The share of a phase's steps in which the learning rate rises.
    #[serde(serialize_with = "as_written")]
    pub warmup: f32,
    pub decay: Decay,
    /// The norm that a step's gradients are scaled down to; `None` leaves them.
    #[serde(serialize_with = "as_written_if_any")]
    pub clip: Option<f32>,
    /// Keep only each layer's input in the forward pass, and compute the rest again.
    pub checkpointing: bool,
    /// Whether each epoch has an order of its own, or the file's.
    pub shuffle: bool,
    pub seed: u64,
}

impl TrainConfig {
    /// The steps and the learning rate of a phase.
    pub fn phase(&self, phase: Phase) -> PhaseConfig {
        match phase {
            Phase::Calibrate => self.calibrate,
            Phase::Adapt => self.adapt,
        }
    }

    /// The learning rate over a phase.
    pub fn schedule(&self, phase: Phase) -> Schedule {
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

    /// Rows of one step of the optimizer.
    pub fn rows_per_step(&self) -> usize {
        self.batch * self.accumulate
    }
}
