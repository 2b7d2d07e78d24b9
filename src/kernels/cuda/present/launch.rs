//! Kernel launches.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::cuda::cudarc::driver::result;
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Result};

use super::device::Kernels;
use super::to_u32;
use super::view::{View, ViewMut};

/// Default number of threads per block.
pub const THREADS: u32 = 256;

/// Threads per warp.
pub const WARP: u32 = 32;

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels, products and graphs launched so far by all threads.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Counts a launch made without [`Launch`].
pub fn count_launch() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

/// Builder of a kernel launch; arguments are appended in order.
pub struct Launch<'a> {
    device: &'a CudaDevice,
    pub kernels: Arc<Kernels>,
    name: &'static str,
    dtype: Option<DType>,
    /// Bytes of the arguments, each aligned to a word.
    words: Vec<u64>,
    /// Index of the first word of each argument.
    arguments: Vec<usize>,
}

impl<'a> Launch<'a> {
    /// Launch of a kernel that is compiled per dtype.
    pub fn new(device: &'a CudaDevice, name: &'static str, dtype: DType) -> Result<Self> {
        Self::any(device, name, Some(dtype))
    }

    /// Launch of a kernel that is compiled only once.
    pub fn single(device: &'a CudaDevice, name: &'static str) -> Result<Self> {
        Self::any(device, name, None)
    }

    fn any(device: &'a CudaDevice, name: &'static str, dtype: Option<DType>) -> Result<Self> {
        Ok(Self {
            kernels: Kernels::of(device)?,
            device,
            name,
            dtype,
            words: Vec::with_capacity(24),
            arguments: Vec::with_capacity(16),
        })
    }

    /// Appends a pointer to values that the kernel reads.
    pub fn read(self, view: &View) -> Self {
        self.u64(view.pointer())
    }

    /// Appends a pointer to values that the kernel writes.
    pub fn write(self, view: &ViewMut) -> Self {
        self.u64(view.pointer())
    }

    /// Appends a null pointer, for kernels that allow one.
    pub fn null(self) -> Self {
        self.u64(0)
    }

    /// Appends a `uint64_t`, or a pointer.
    pub fn u64(self, value: u64) -> Self {
        self.words(&[value])
    }

    /// Appends a struct as the words of its memory.
    pub fn words(mut self, words: &[u64]) -> Self {
        self.arguments.push(self.words.len());
        self.words.extend(words);
        self
    }

    /// Appends a `uint32_t`.
    pub fn u32(self, value: u32) -> Self {
        self.u64(u64::from(value))
    }

    /// Appends a size or a count as a `uint32_t`.
    ///
    /// # Errors
    /// It does not fit.
    pub fn size(self, size: usize) -> Result<Self> {
        Ok(self.u32(to_u32(size)?))
    }

    /// Appends a `float`.
    pub fn f32(self, value: f32) -> Self {
        self.u32(value.to_bits())
    }

    /// Launches a grid of blocks of `threads` threads. An empty grid launches nothing.
    ///
    /// # Errors
    /// There is no such kernel, or the GPU refuses the launch.
    ///
    /// # Safety
    /// The arguments are the kernel's, in order and type, and all that the kernel reads and writes
    /// through them is memory that it may access.
    pub unsafe fn run(self, grid: [u32; 3], threads: u32, shared_bytes: usize) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let stream = self.device.cuda_stream();
        // The calls below use the thread's current context.
        stream.context().bind_to_thread().w()?;
        let function = self.kernels.function(self.name, self.dtype)?;
        // On little-endian machines, a word starts with the bytes of the value it was made from.
        let pointer = |&word: &usize| std::ptr::from_ref(&self.words[word]).cast_mut().cast();
        let mut pointers: Vec<*mut c_void> = self.arguments.iter().map(pointer).collect();
        // SAFETY: the caller's promise; the arguments live until the driver has copied them.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                grid.into(),
                (threads, 1, 1),
                to_u32(shared_bytes)?,
                stream.cu_stream(),
                &mut pointers,
            )
        }
        .w()?;
        count_launch();
        Ok(())
    }

    /// Launches one block per row.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_rows(self, rows: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.run([to_u32(rows)?, 1, 1], THREADS, 0) }
    }

    /// Launches one thread per column, rounded up to whole blocks.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_columns(self, columns: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.run_rows(columns.div_ceil(THREADS as usize)) }
    }

    /// Launches one thread per value, or fewer threads with several values each.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_over(self, values: usize) -> Result<()> {
        let blocks = values
            .div_ceil(THREADS as usize)
            .min(self.kernels.multiprocessors * 16);
        // SAFETY: the caller's promise.
        unsafe { self.run([to_u32(blocks)?, 1, 1], THREADS, 0) }
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("kernel arguments are laid out for a little-endian machine");
