//! Staging of a step's inputs: collected on the host, then copied to the GPU at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{Device, Result};

use crate::kernels::cuda::present::view::pointer;

/// Bytes that the offset of every slice is a multiple of.
const ALIGNMENT: usize = 16;
/// Bytes of the smallest allocation.
const MIN_BYTES: usize = 4096;

/// Values that are copied to a GPU byte by byte.
///
/// # Safety
/// Plain numbers, without padding between them.
pub unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for u32 {}

/// Numbers to be copied together, and the GPU memory for them, which is reused by later uploads.
pub struct Staging {
    device: CudaDevice,
    staged: Vec<u8>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Its address; 0 before the first upload.
    start: AtomicU64,
    /// Number of uploads so far.
    uploads: AtomicU64,
    slice: Mutex<Option<CudaSlice<u8>>>,
}

/// Staged numbers on the GPU, valid from their upload until the next one. Keeps the memory alive.
pub struct StagedSlice {
    memory: Arc<Memory>,
    offset: u64,
    /// Number of the upload that the slice belongs to.
    upload: u64,
}

impl StagedSlice {
    /// Address of the numbers.
    ///
    /// # Errors
    /// They are not uploaded yet, or were overwritten by a later upload.
    pub fn pointer(&self) -> Result<u64> {
        if self.memory.uploads.load(Ordering::Relaxed) != self.upload {
            candle_core::bail!("the step's inputs are not on the GPU, or no longer");
        }
        Ok(self.memory.start.load(Ordering::Relaxed) + self.offset)
    }
}

impl Staging {
    /// Staging for a GPU; `None` for another device.
    pub fn new(device: &Device) -> Option<Self> {
        match device {
            Device::Cuda(device) => Some(Self {
                device: device.clone(),
                staged: Vec::new(),
                memory: Arc::default(),
            }),
            _ => None,
        }
    }

    /// Stages numbers. An empty slice has an address too.
    pub fn stage<V: Plain>(&mut self, values: &[V]) -> StagedSlice {
        let offset = self.staged.len();
        // SAFETY: plain numbers without padding between them.
        let bytes = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
        };
        self.staged.extend_from_slice(bytes);
        let end = self.staged.len().max(offset + 1);
        self.staged.resize(end.next_multiple_of(ALIGNMENT), 0);
        StagedSlice {
            memory: Arc::clone(&self.memory),
            offset: offset as u64,
            upload: self.memory.uploads.load(Ordering::Relaxed) + 1,
        }
    }

    /// Drops the numbers that were staged and not uploaded.
    pub fn discard(&mut self) {
        self.staged.clear();
    }

    /// Copies the staged numbers over those of the last upload, or to new memory if they need more.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn upload(&mut self) -> Result<()> {
        let slice = self.memory.slice.lock();
        let mut slice = slice.unwrap_or_else(PoisonError::into_inner);
        let memory = match &mut *slice {
            Some(memory) if memory.len() >= self.staged.len() => memory,
            too_small => {
                let room = self.staged.len().next_power_of_two().max(MIN_BYTES);
                // SAFETY: kernels read only what was written before.
                let memory = too_small.insert(unsafe { self.device.alloc::<u8>(room) }?);
                let start = pointer(memory);
                self.memory.start.store(start, Ordering::Relaxed);
                memory
            }
        };
        self.device.memcpy_htod(&self.staged, memory)?;
        self.memory.uploads.fetch_add(1, Ordering::Relaxed);
        self.staged.clear();
        Ok(())
    }

    /// Address of the first slice; 0 before the first upload.
    pub fn start(&self) -> u64 {
        self.memory.start.load(Ordering::Relaxed)
    }
}
