//! Per-row indices of a step: token ids, positions, slots, row numbers.

use candle_core::{Device, Result};

use super::inputs::Inputs;
use crate::kernels::cuda;

/// Indices on the host and, for steps on a GPU, in its memory: uploaded once per step for all
/// operations.
pub struct Indices<'a> {
    host: &'a [u32],
    on_gpu: Option<cuda::StagedSlice>,
}

impl<'a> Indices<'a> {
    /// Stages indices with the other inputs of a step.
    pub fn new(host: &'a [u32], inputs: &mut Inputs) -> Self {
        let on_gpu = inputs.on_gpu.as_mut();
        Self {
            host,
            on_gpu: on_gpu.map(|staging| staging.stage(host)),
        }
    }

    /// Uploads indices immediately, by themselves.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn uploaded(host: &'a [u32], device: &Device) -> Result<Self> {
        let mut inputs = Inputs::new(device);
        let indices = Self::new(host, &mut inputs);
        inputs.upload()?;
        Ok(indices)
    }

    /// The indices on the host.
    pub fn host(&self) -> &'a [u32] {
        self.host
    }

    /// Checks that there are `count` indices, all below `limit`. Errors call an index `what`.
    pub(crate) fn check(&self, what: &str, count: usize, limit: usize) -> Result<()> {
        if self.host.len() != count {
            candle_core::bail!("{count} rows need {count} {what}s, not {}", self.host.len());
        }
        match self.host.iter().find(|&&index| index as usize >= limit) {
            Some(index) => candle_core::bail!("{what} {index} out of range (0..{limit})"),
            None => Ok(()),
        }
    }

    /// The indices in GPU memory.
    ///
    /// # Errors
    /// They are on the CPU only.
    pub(in crate::kernels) fn on_gpu(&self) -> Result<&cuda::StagedSlice> {
        match &self.on_gpu {
            Some(slice) => Ok(slice),
            None => candle_core::bail!("the indices are not on the GPU"),
        }
    }
}
