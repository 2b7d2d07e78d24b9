//! The numbers that go with a step (token ids, positions, block tables, which rows are under which ticket), put where
//! the kernels run: all of them by one copy.

use candle_core::{Device, Result};

/// Collects a step's numbers, for a GPU: [`super::indices::Indices`], [`crate::kernels::attention::Spans`] and
/// [`crate::kernels::ticket::overlay::Overlays`] are placed here, then uploaded together, and may be read once they are. Kept from step
/// to step, it puts the same numbers at the same place. On the CPU they stay where they are.
pub struct Inputs {
    #[cfg(feature = "cuda")]
    pub(in crate::kernels) on_gpu: Option<crate::kernels::cuda::Staging>,
}

impl Inputs {
    pub fn new(device: &Device) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Self {
            #[cfg(feature = "cuda")]
            on_gpu: match device {
                Device::Cuda(device) => Some(crate::kernels::cuda::Staging::new(device)),
                _ => None,
            },
        }
    }

    /// Forgets what was placed and not uploaded.
    pub(in crate::kernels) fn forget(&mut self) {
        #[cfg(feature = "cuda")]
        if let Some(staging) = &mut self.on_gpu {
            staging.forget();
        }
    }

    /// Where they are on a GPU.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn start(&self) -> Option<u64> {
        self.on_gpu
            .as_ref()
            .map(crate::kernels::cuda::Staging::start)
    }

    /// Copies what was placed since the last upload, over what was uploaded then: that may not be read any more.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn upload(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(staging) = &mut self.on_gpu {
            return staging.upload();
        }
        Ok(())
    }
}
