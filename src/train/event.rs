//! What a run tells while it goes on: to whoever watches, and to `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::Phase;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase begins.
    Phase {
        phase: Phase,
        steps: usize,
        /// Weights that are trained.
        trained: usize,
        /// Bytes of their gradients, optimizer state and f32 masters.
        bytes: usize,
    },
    Step(StepReport),
    /// The mean loss of a learned token of the validation rows, in nats.
    Valid {
        /// `None` before anything was trained.
        phase: Option<Phase>,
        /// Steps of the phase that were taken.
        step: usize,
        loss: f64,
    },
    /// The mask was chosen: weights kept of each parameter, and how many it has.
    Mask {
        parameters: BTreeMap<String, (usize, usize)>,
    },
    /// The ticket is written; its loss on the validation rows, measured with rounded deltas.
    Ticket {
        digest: String,
        bytes: u64,
        loss: Option<f64>,
    },
}

/// One step of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub phase: Phase,
    /// From 1.
    pub step: usize,
    /// Mean loss of the step's learned tokens, in nats.
    pub loss: f64,
    pub learning_rate: f32,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's rows, learned or not.
    pub tokens: usize,
    pub seconds: f64,
}
