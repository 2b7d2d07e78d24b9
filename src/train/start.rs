//! The weights that training starts from, and returns to between its phases.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::TrainError;
use crate::kernels::ticket::apply;
use crate::model::Checkpoint;
use crate::ticket::{BaseManifest, BoundTicket};

/// The base's parameters as stored on disk, plus a ticket if one is given. They are read again on
/// each use, so that memory holds no second copy of the base.
pub struct Start<'a> {
    /// Checkpoint of the base.
    pub checkpoint: &'a Checkpoint,
    /// Manifest of the base.
    pub manifest: Arc<BaseManifest>,
    /// Ticket that is added to the base before training.
    pub on_top_of: Option<Arc<BoundTicket>>,
}

impl Start<'_> {
    /// Reads one parameter, in f32, on the CPU.
    pub(super) fn parameter(&self, name: &str) -> Result<Tensor, TrainError> {
        let shape = &self.manifest.parameters[name].shape;
        let tensor = self.checkpoint.load(name, shape)?;
        let ticket = self.on_top_of.as_ref();
        if let Some(delta) = ticket.and_then(|ticket| ticket.tensors().get(name)) {
            // Copied first, because the checkpoint may return a shared tensor.
            let tensor = tensor.copy()?;
            apply::add(&tensor, delta, 1.0)?;
            return Ok(tensor);
        }
        Ok(tensor)
    }

    /// Writes every parameter back into the resident `parameters`, by checkpoint name.
    pub(super) fn reset(&self, parameters: &BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        for (name, resident) in parameters {
            let parameter = self.parameter(name)?.to_device(resident.device())?;
            resident.slice_set(&parameter, 0, 0)?;
        }
        Ok(())
    }
}
