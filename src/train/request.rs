//! Inputs and options of a training run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::config::{Score, TrainConfig};
use super::event::Event;
use super::start::Start;
use crate::data::{Dataset, Example};
use crate::model::Checkpoint;
use crate::ticket::{BoundTicket, Digest};

/// Source of the mask.
pub enum MaskSource<'a> {
    /// The configured score, after a calibration phase if the score needs one.
    Score,
    /// The task vector `|w − w_0|` of a checkpoint that was tuned elsewhere.
    Checkpoint {
        /// The tuned checkpoint, with the parameters of the base.
        checkpoint: &'a Checkpoint,
        /// Fingerprint of the checkpoint, recorded in the ticket.
        fingerprint: Digest,
    },
    /// The positions of a ticket.
    Ticket(Arc<BoundTicket>),
}

/// Inputs and options of a training run.
pub struct TrainRequest<'a> {
    /// Configuration of the method.
    pub config: TrainConfig,
    /// The weights that training starts from.
    pub start: Start<'a>,
    /// Rows to learn.
    pub train: &'a Dataset,
    /// Validation rows: their loss is measured, they are never trained on.
    pub valid: Option<&'a Dataset>,
    /// Source of the positions to train.
    pub mask: MaskSource<'a>,
    /// Tickets whose positions the mask must not hold (LoTTO).
    pub avoid: Vec<Arc<BoundTicket>>,
    /// License recorded in the ticket's metadata.
    pub license: Option<String>,
    /// Steps between measurements of the validation loss; 0 measures none during a phase.
    pub eval_every: usize,
    /// Steps between saves of the run's state; 0 saves only when a phase begins or the run stops.
    pub save_every: usize,
    /// Set by the caller to stop the run: it saves its state before the next step.
    pub stop: &'a AtomicBool,
    /// Compute threads.
    pub threads: usize,
}

/// Observes training events.
pub type Observer<'a> = dyn FnMut(&Event) + Send + 'a;

/// Saves the parameters of the calibrated base, by checkpoint name; returns the reason on failure.
pub type SaveCalibrated<'a> =
    dyn FnMut(&BTreeMap<String, Tensor>) -> Result<(), String> + Send + 'a;

/// Callbacks of a training run.
pub struct Callbacks<'a> {
    /// Called with each event, after it is written to the run folder.
    pub observe: &'a mut Observer<'a>,
    /// Called once after a calibration phase that moved the weights, before they are reset.
    pub save_calibrated: &'a mut SaveCalibrated<'a>,
}

impl TrainRequest<'_> {
    /// Everything except the processor that determines the ticket's bytes: written to the run
    /// folder as `config.json`, and in part to the ticket's metadata.
    pub fn describe(&self) -> Value {
        let digest = |ticket: &Arc<BoundTicket>| ticket.digest().to_string();
        let base = &self.start.manifest;
        let mask = match &self.mask {
            MaskSource::Score => Value::Null,
            MaskSource::Checkpoint {
                checkpoint,
                fingerprint,
            } => json!({
                "checkpoint": checkpoint.path().file_name().map(|name| name.to_string_lossy()),
                "fingerprint": fingerprint.to_string(),
            }),
            MaskSource::Ticket(ticket) => json!({ "ticket": digest(ticket) }),
        };
        let mut train = json!(self.config);
        for name in self.unused_options() {
            train[name] = Value::Null;
        }
        json!({
            "base": { "name": base.name, "fingerprint": base.fingerprint.to_string() },
            "data": describe_data(self.train),
            "valid": self.valid.map(describe_data),
            "mask_from": mask,
            "avoid": self.avoid.iter().map(digest).collect::<Vec<_>>(),
            "on_top_of": self.start.on_top_of.as_ref().map(digest),
            "license": self.license,
            "threads": self.threads,
            "train": train,
            "tool": concat!("tombola ", env!("CARGO_PKG_VERSION")),
        })
    }

    /// Options of the configuration that have no effect with this mask.
    fn unused_options(&self) -> &'static [&'static str] {
        match &self.mask {
            MaskSource::Score if self.config.score == Score::Random => &["calibrate"],
            MaskSource::Score => &[],
            MaskSource::Checkpoint { .. } => &["calibrate"],
            MaskSource::Ticket(_) => &["calibrate", "density", "score", "scope"],
        }
    }

    /// Validation rows, if any.
    pub(super) fn valid_rows(&self) -> &[Example] {
        self.valid.map_or(&[], |valid| &valid.examples)
    }
}

fn describe_data(data: &Dataset) -> Value {
    json!({
        "sha256": data.digest.to_string(),
        "rows": data.examples.len(),
        "rows_cut": data.cut,
        "tokens": data.examples.iter().map(|e| e.tokens.len()).sum::<usize>(),
        "learned_tokens": data.examples.iter().map(Example::learned_tokens).sum::<usize>(),
    })
}
