//! Numbers that go with the rows of a step: token ids, positions, slots, rows.

use candle_core::{Device, Result};

/// Indices put where the kernels run: once a step, however many operations take them.
pub struct Indices<'a> {
    host: &'a [u32],
    #[cfg(feature = "cuda")]
    on_gpu: Option<candle_core::cuda::cudarc::driver::CudaSlice<u32>>,
}

impl<'a> Indices<'a> {
    pub fn new(host: &'a [u32], device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            host,
            #[cfg(feature = "cuda")]
            on_gpu: match device {
                Device::Cuda(device) => Some(super::cuda::upload(device, host)?),
                _ => None,
            },
        })
    }

    /// The indices here.
    pub fn host(&self) -> &'a [u32] {
        self.host
    }

    /// Where they are on the GPU that they were made for.
    #[cfg(feature = "cuda")]
    pub(super) fn pointer(&self) -> Result<u64> {
        match &self.on_gpu {
            Some(slice) => Ok(super::cuda::pointer(slice)),
            None => candle_core::bail!("indices that are not on the GPU"),
        }
    }
}
