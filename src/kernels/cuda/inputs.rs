//! The numbers of a step on their way to a GPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;

use super::view::pointer;

/// What every place is a multiple of.
const ALIGNMENT: usize = 16;
/// Bytes that are taken at least.
const LEAST: usize = 4096;

/// What is copied to a GPU byte by byte.
///
/// # Safety
/// Plain numbers, without padding between them.
pub unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for u32 {}

/// Numbers to be copied together, and the GPU's memory for them, which is kept for the next.
pub struct Staging {
    device: CudaDevice,
    staged: Vec<u8>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Where it begins; 0 before anything was uploaded.
    start: AtomicU64,
    /// How often something was uploaded.
    uploads: AtomicU64,
    slice: Mutex<Option<CudaSlice<u8>>>,
}

/// Where some numbers are from their upload to the next. Keeps the memory.
pub struct Place {
    memory: Arc<Memory>,
    offset: u64,
    /// The upload that they belong to.
    upload: u64,
}

impl Place {
    /// # Errors
    /// They were not uploaded, or others were since.
    pub fn pointer(&self) -> Result<u64> {
        if self.memory.uploads.load(Ordering::Relaxed) != self.upload {
            candle_core::bail!("inputs that are not on the GPU, or not any more");
        }
        Ok(self.memory.start.load(Ordering::Relaxed) + self.offset)
    }
}

impl Staging {
    pub fn new(device: &CudaDevice) -> Self {
        Self {
            device: device.clone(),
            staged: Vec::new(),
            memory: Arc::default(),
        }
    }

    /// Takes numbers in; no numbers have a place too.
    pub fn place<V: Plain>(&mut self, values: &[V]) -> Place {
        let offset = self.staged.len();
        // SAFETY: plain numbers without padding between them.
        let bytes = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
        };
        self.staged.extend_from_slice(bytes);
        let end = self.staged.len().max(offset + 1);
        self.staged.resize(end.next_multiple_of(ALIGNMENT), 0);
        Place {
            memory: Arc::clone(&self.memory),
            offset: offset as u64,
            upload: self.memory.uploads.load(Ordering::Relaxed) + 1,
        }
    }

    /// Forgets what was taken in and not copied.
    pub fn forget(&mut self) {
        self.staged.clear();
    }

    /// Copies what was taken in, to the place of what was uploaded before, or to another where that is too small.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn upload(&mut self) -> Result<()> {
        let slice = self.memory.slice.lock();
        let mut slice = slice.unwrap_or_else(PoisonError::into_inner);
        let memory = match &mut *slice {
            Some(memory) if memory.len() >= self.staged.len() => memory,
            small => {
                let room = self.staged.len().next_power_of_two().max(LEAST);
                // SAFETY: what is read of it is written before.
                let memory = small.insert(unsafe { self.device.alloc::<u8>(room) }?);
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

    /// Where the first place is; 0 before anything was uploaded.
    pub fn start(&self) -> u64 {
        self.memory.start.load(Ordering::Relaxed)
    }
}
