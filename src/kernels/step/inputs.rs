//! The numbers of a step (token ids, positions, block tables, rows per ticket), copied to the
//! device at once.

use candle_core::{Device, Result};

use crate::kernels::cuda;

/// Collector of a step's numbers. [`Indices`](super::indices::Indices),
/// [`Spans`](crate::kernels::attention::Spans) and
/// [`Overlays`](crate::kernels::ticket::overlay::Overlays) are staged here, then uploaded together,
/// and may be read from the upload on. If it is kept from step to step, equal numbers lie at equal
/// addresses. On the CPU the numbers stay where they are.
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

    /// Drops the numbers that were staged and not uploaded.
    pub(in crate::kernels) fn discard(&mut self) {
        if let Some(staging) = &mut self.on_gpu {
            staging.discard();
        }
    }

    /// Address of the first number on a GPU; 0 before the first upload.
    pub(crate) fn start(&self) -> Option<u64> {
        self.on_gpu.as_ref().map(cuda::Staging::start)
    }

    /// Copies the numbers staged since the last upload over those of that upload, which are then no
    /// longer valid.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn upload(&mut self) -> Result<()> {
        match &mut self.on_gpu {
            Some(staging) => staging.upload(),
            None => Ok(()),
        }
    }
}
