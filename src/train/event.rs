//! Events of a training run, as passed to observers and appended to `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::Phase;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Beginning of a phase.
    Phase {
        phase: Phase,
        /// Planned steps.
        steps: usize,
        /// Number of trained weights.
        trained: usize,
        /// Bytes of gradients, optimizer state and f32 masters.
        bytes: usize,
    },
    /// End of an optimizer step.
    Step(StepReport),
    /// Mean loss per learned token of the validation rows, in nats.
    Valid {
        /// `None` before training.
        phase: Option<Phase>,
        /// Number of steps taken in the phase.
        step: usize,
        loss: f64,
    },
    /// Choice of the mask: weights in the mask and weights in total, by parameter.
    Mask {
        parameters: BTreeMap<String, (usize, usize)>,
    },
    /// Completion of the ticket, with its loss on the validation rows under the rounded deltas.
    Ticket {
        /// SHA-256 of the ticket file.
        digest: String,
        /// Size of the ticket file.
        bytes: u64,
        /// `None` without validation rows.
        loss: Option<f64>,
    },
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Phase of the step.
    pub phase: Phase,
    /// Number of the step in its phase, from 1.
    pub step: usize,
    /// Mean loss per learned token, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Tokens of the rows, learned or not.
    pub tokens: usize,
    /// Wall-clock time of the step.
    pub seconds: f64,
}
