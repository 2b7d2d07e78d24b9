//! The positions of a matrix that are trained, on a GPU.

use candle_core::Result;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;

use crate::kernels::cuda::present::launch::{Launch, THREADS};
use crate::kernels::cuda::present::ticket::layout::CHUNK;
use crate::kernels::cuda::present::to_u32;
use crate::kernels::cuda::present::view::{pointer, upload};
use crate::kernels::training::pattern::Pattern;

/// Row offsets and columns of a pattern in a GPU's memory.
#[derive(Debug)]
pub struct DevicePattern {
    row_offsets: CudaSlice<u32>,
    columns: CudaSlice<u32>,
    /// Blocks of threads for all positions.
    blocks: u32,
}

impl DevicePattern {
    /// Copies a pattern to a GPU.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(device: &CudaDevice, pattern: &Pattern) -> Result<Self> {
        Ok(Self {
            row_offsets: upload(device, pattern.row_offsets())?,
            columns: upload(device, pattern.columns())?,
            blocks: to_u32(pattern.nonzeros().div_ceil(CHUNK))?,
        })
    }

    /// Appends the pointers to row offsets and columns.
    pub fn append<'l>(&self, launch: Launch<'l>) -> Launch<'l> {
        launch
            .u64(pointer(&self.row_offsets))
            .u64(pointer(&self.columns))
    }

    /// Launches a kernel whose blocks take [`CHUNK`] positions each.
    ///
    /// # Errors
    /// As [`Launch::run`].
    ///
    /// # Safety
    /// As [`Launch::run`].
    pub unsafe fn run(&self, launch: Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch.run([self.blocks, 1, 1], THREADS, 0) }
    }
}
