//! Inputs of a step (token ids, positions, block tables, rows per ticket), uploaded in one copy.

use candle_core::{Device, Result};

use crate::kernels::cuda;

/// Staging buffer for a step's inputs. [`Indices`](super::indices::Indices),
/// [`Spans`](crate::kernels::attention::Spans) and
/// [`Overlays`](crate::kernels::ticket::overlay::Overlays) are staged here, then uploaded together;
/// kernels may read them after the upload. If the buffer is reused from step to step, inputs of
/// equal sizes have equal addresses until it grows. On the CPU nothing is copied.
pub struct Inputs {
    pub(in crate::kernels) on_gpu: Option<cuda::Staging>,
}

impl Inputs {
    /// Inputs for steps on a device.
    pub fn new(device: &Device) -> Self {
        Self {
            on_gpu: cuda::Staging::new(device),
        }
    }

    /// Drops staged inputs that were not uploaded.
    pub(in crate::kernels) fn discard(&mut self) {
        if let Some(staging) = &mut self.on_gpu {
            staging.discard();
        }
    }

    /// Address of the buffer on a GPU; 0 before the first upload.
    pub(crate) fn start(&self) -> Option<u64> {
        self.on_gpu.as_ref().map(cuda::Staging::start)
    }

    /// Uploads the inputs staged since the last upload. They overwrite that upload's inputs, which
    /// are no longer valid.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn upload(&mut self) -> Result<()> {
        match &mut self.on_gpu {
            Some(staging) => staging.upload(),
            None => Ok(()),
        }
    }
}
