//! A training run in progress: the state that its phases share.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::backprop::{Backprop, Rows};
use super::config::TrainConfig;
use super::error::TrainError;
use super::request::TrainRequest;
use crate::data::Example;
use crate::kernels::ticket::apply;
use crate::model::Decoder;
use crate::ticket::{BaseManifest, TensorDelta};

/// A training run in progress.
pub struct Run<'a> {
    pub request: &'a TrainRequest<'a>,
    pub decoder: Decoder,
    /// The resident parameters, by checkpoint name; they share the decoder's storage.
    pub parameters: BTreeMap<String, Tensor>,
}

/// Mean losses on the validation rows, in nats per learned token; `None` without validation rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Of the start; `None` in a resumed run.
    pub before: Option<f64>,
    /// Of the calibrated base; `None` if this run did not calibrate by moving weights.
    pub calibrated: Option<f64>,
    /// Of the start plus the ticket's rounded deltas.
    pub ticket: Option<f64>,
}

impl Run<'_> {
    /// Configuration of the method.
    pub fn config(&self) -> &TrainConfig {
        &self.request.config
    }

    /// Manifest of the base.
    pub fn manifest(&self) -> &BaseManifest {
        &self.request.start.manifest
    }

    /// Losses and gradients of the decoder.
    pub fn backprop(&self) -> Backprop<'_> {
        Backprop {
            decoder: &self.decoder,
            checkpointing: self.config().checkpointing,
        }
    }

    /// The mean loss of the validation rows under the current weights.
    pub fn valid_loss(&self) -> Result<Option<f64>, TrainError> {
        mean_loss(self.backprop(), self.request.valid_rows())
    }

    /// The mean loss of the validation rows under the start plus `deltas`, applied as serving
    /// applies them.
    pub fn valid_loss_with(
        &self,
        deltas: &BTreeMap<String, TensorDelta>,
    ) -> Result<Option<f64>, TrainError> {
        self.request.start.reset(&self.parameters)?;
        for (name, delta) in deltas {
            apply::add(&self.parameters[name], delta, 1.0)?;
        }
        self.valid_loss()
    }
}

/// Rows per forward pass if no gradient is needed.
const ROWS: usize = 1024;

/// The mean loss of the learned tokens of `examples`, in nats; `None` if there are none.
fn mean_loss(backprop: Backprop, examples: &[Example]) -> Result<Option<f64>, TrainError> {
    let (mut sum, mut count) = (0.0, 0usize);
    let mut rows = Rows::default();
    for (i, example) in examples.iter().enumerate() {
        rows.push(&example.tokens, &example.learned);
        if rows.tokens.len() >= ROWS || i + 1 == examples.len() {
            let losses = backprop.losses(&rows)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            count += losses.len();
            rows = Rows::default();
        }
    }
    Ok((count > 0).then(|| sum / count as f64))
}
