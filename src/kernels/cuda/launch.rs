//! One launch of a kernel.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::cuda::cudarc::driver::result;
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Result};

use super::device::Kernels;
use super::view::{View, ViewMut};

/// Threads of a block, where nothing else is asked.
const THREADS: usize = 256;

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels and products that were launched so far, by all threads: what a step launches is the difference.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

pub(super) fn count_launch() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

/// A launch that is being put together: the kernel's arguments in their order.
pub struct Launch<'a> {
    device: &'a CudaDevice,
    pub(super) kernels: Arc<Kernels>,
    name: &'static str,
    dtype: Option<DType>,
    /// The arguments' bytes, each from the start of a word.
    words: Vec<u64>,
    /// The word that each argument begins with.
    arguments: Vec<usize>,
}

impl<'a> Launch<'a> {
    /// Of a kernel that is compiled for each dtype.
    pub fn new(device: &'a CudaDevice, name: &'static str, dtype: DType) -> Result<Self> {
        Self::any(device, name, Some(dtype))
    }

    /// Of a kernel that there is once.
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

    pub fn read(self, view: &View) -> Self {
        self.u64(view.pointer())
    }

    pub fn write(self, view: &ViewMut) -> Self {
        self.u64(view.pointer())
    }

    /// A pointer to nothing, where the kernel allows it.
    pub fn null(self) -> Self {
        self.u64(0)
    }

    /// A `uint64_t`, or a pointer.
    pub fn u64(self, value: u64) -> Self {
        self.words(&[value])
    }

    /// A struct, word by word as it lies in memory.
    pub fn words(mut self, words: &[u64]) -> Self {
        self.arguments.push(self.words.len());
        self.words.extend(words);
        self
    }

    /// A `uint32_t`.
    pub fn u32(self, value: u32) -> Self {
        self.u64(u64::from(value))
    }

    /// A size or a number of things, as a `uint32_t`.
    ///
    /// # Errors
    /// It is too large for one.
    pub fn size(self, size: usize) -> Result<Self> {
        Ok(self.u32(super::narrow(size)?))
    }

    /// A `float`.
    pub fn f32(self, value: f32) -> Self {
        self.u32(value.to_bits())
    }

    /// Launches on blocks of `threads` threads. A grid without blocks launches nothing.
    ///
    /// # Errors
    /// There is no such kernel, or the GPU refuses the launch.
    ///
    /// # Safety
    /// The arguments are the kernel's, in order and type, and what it reads and writes by them lies in memory
    /// that they may reach.
    pub unsafe fn run(self, grid: [u32; 3], threads: u32, shared_bytes: usize) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let stream = self.device.cuda_stream();
        // The calls below are about the thread's current context.
        stream.context().bind_to_thread().w()?;
        let function = self.kernels.function(self.name, self.dtype)?;
        // On this little-endian machine a word begins with the bytes of what was put into it.
        let pointer = |&word: &usize| std::ptr::from_ref(&self.words[word]).cast_mut().cast();
        let mut pointers: Vec<*mut c_void> = self.arguments.iter().map(pointer).collect();
        // SAFETY: the caller's promise; the arguments live until the driver has copied them.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                grid.into(),
                (threads, 1, 1),
                super::narrow(shared_bytes)?,
                stream.cu_stream(),
                &mut pointers,
            )
        }
        .w()?;
        count_launch();
        Ok(())
    }

    /// Launches a block of threads for each of the rows.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_rows(self, rows: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.run([super::narrow(rows)?, 1, 1], THREADS as u32, 0) }
    }

    /// Launches a thread for each of the columns, and a few more.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_columns(self, columns: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.run_rows(columns.div_ceil(THREADS)) }
    }

    /// Launches on as many threads as there are values, or fewer that take several.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn run_over(self, values: usize) -> Result<()> {
        let blocks = values
            .div_ceil(THREADS)
            .min(self.kernels.multiprocessors * 16);
        // SAFETY: the caller's promise.
        unsafe { self.run([super::narrow(blocks)?, 1, 1], THREADS as u32, 0) }
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("kernel arguments are laid out for a little-endian machine");
