//! The weights that training starts from, and goes back to between its phases.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::TrainError;
use crate::kernels::ticket::apply;
use crate::model::Checkpoint;
use crate::ticket::{BaseManifest, BoundTicket};

/// The base's parameters as they lie on disk, with a ticket on top where one was asked for. They are
/// read again whenever they are wanted, so that no second copy stays in memory.
pub struct Start<'a> {
    pub checkpoint: &'a Checkpoint,
    pub manifest: Arc<BaseManifest>,
    pub on_top_of: Option<Arc<BoundTicket>>,
}

impl Start<'_> {
    /// One parameter, in f32.
    pub fn parameter(&self, name: &str) -> Result<Tensor, TrainError> {
        let tensor = self
            .checkpoint
            .load(name, &self.manifest.parameters[name].shape)?;
        let ticket = self.on_top_of.as_ref();
        if let Some(delta) = ticket.and_then(|ticket| ticket.tensors().get(name)) {
            // A copy first: what a checkpoint gives may be shared.
            let tensor = tensor.copy()?;
            apply::add(&tensor, delta, 1.0)?;
            return Ok(tensor);
        }
        Ok(tensor)
    }

    /// Writes all of them into the resident parameters, by name.
    pub fn reset(&self, parameters: &BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        for (name, resident) in parameters {
            let parameter = self.parameter(name)?.to_device(resident.device())?;
            resident.slice_set(&parameter, 0, 0)?;
        }
        Ok(())
    }
}
