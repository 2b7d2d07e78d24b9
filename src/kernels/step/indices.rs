//! Indices that go with the rows of a step: token ids, positions, slots, rows.

use candle_core::{Device, Result};

use super::inputs::Inputs;
use crate::kernels::cuda;

/// Indices on the host and, if kernels run there, on a GPU: uploaded once per step, however many
/// operations use them.
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

    /// Uploads indices alone.
    ///
    /// # Errors
    /// There is no memory for them.
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

    /// Checks that there are `count` indices, all below `limit`; `what` names one of them in
    /// errors.
    pub(crate) fn check(&self, what: &str, count: usize, limit: usize) -> Result<()> {
        if self.host.len() != count {
            candle_core::bail!("{} {what}s for {count} rows", self.host.len());
        }
        match self.host.iter().find(|&&index| index as usize >= limit) {
            Some(index) => candle_core::bail!("{what} {index} of {limit}"),
            None => Ok(()),
        }
    }

    /// The same indices on the GPU.
    ///
    /// # Errors
    /// They were made for the CPU.
    pub(in crate::kernels) fn on_gpu(&self) -> Result<&cuda::StagedSlice> {
        match &self.on_gpu {
            Some(slice) => Ok(slice),
            None => candle_core::bail!("the indices are not on the GPU"),
        }
    }
}
