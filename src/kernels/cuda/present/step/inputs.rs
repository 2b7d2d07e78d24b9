//! Staging of a step's inputs: collected on the host, then uploaded in one copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{Device, Result};

use crate::kernels::cuda::present::view::pointer;

/// Alignment of every slice in bytes.
const ALIGNMENT: usize = 16;
/// Minimum allocation in bytes.
const MIN_BYTES: usize = 4096;

/// Values that can be copied to a GPU as bytes.
///
/// # Safety
/// The type consists of plain numbers without padding.
pub unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for u32 {}

/// Inputs to upload together, and their GPU memory, which later uploads reuse.
pub struct Staging {
    device: CudaDevice,
    staged: Vec<u8>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Address of the memory; 0 before the first upload.
    start: AtomicU64,
    /// Number of uploads so far.
    uploads: AtomicU64,
    slice: Mutex<Option<CudaSlice<u8>>>,
}

/// Staged values on the GPU, valid from their upload until the next one. Keeps the memory alive.
pub struct StagedSlice {
    memory: Arc<Memory>,
    offset: u64,
    /// Number of the upload that contains the slice.
    upload: u64,
}

impl StagedSlice {
    /// Address of the values.
    ///
    /// # Errors
    /// They are not uploaded yet, or a later upload has overwritten them.
    pub fn pointer(&self) -> Result<u64> {
        if self.memory.uploads.load(Ordering::Relaxed) != self.upload {
            candle_core::bail!(
                "the step's inputs are not uploaded, or a later upload has overwritten them"
            );
        }
        Ok(self.memory.start.load(Ordering::Relaxed) + self.offset)
    }
}

impl Staging {
    /// Staging for a GPU; `None` for other devices.
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

    /// Stages values. Even an empty slice gets an address.
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

    /// Drops staged values that were not uploaded.
    pub fn discard(&mut self) {
        self.staged.clear();
    }

    /// Uploads the staged values over those of the last upload, or to new memory if they need more.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn upload(&mut self) -> Result<()> {
        let slice = self.memory.slice.lock();
        let mut slice = slice.unwrap_or_else(PoisonError::into_inner);
        let memory = match &mut *slice {
            Some(memory) if memory.len() >= self.staged.len() => memory,
            too_small => {
                let room = self.staged.len().next_power_of_two().max(MIN_BYTES);
                // SAFETY: kernels read only memory that an upload has written.
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
