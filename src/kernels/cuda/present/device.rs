//! GPUs opened by the process, and their kernel modules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::cuda::cudarc::driver::{CudaFunction, CudaModule, result, sys};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Result};

/// Compiled kernels for the GPU architectures of the build script.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Opens a GPU by ordinal, once per process.
///
/// # Errors
/// The driver, the GPU, cuBLAS or cuRAND is missing, or the GPU is older than the kernels support.
pub fn open(ordinal: usize) -> Result<Device> {
    let mut opened = opened();
    if let Some(gpu) = opened.iter().find(|gpu| gpu.ordinal == ordinal) {
        return Ok(Device::Cuda(gpu.device.clone()));
    }
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: all work goes to the device's one stream, so no work has to wait for an event.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device)?;
    let image = Ptx::from_binary(IMAGE.to_vec());
    let module = device.cuda_stream().context().load_module(image).w()?;
    opened.push(Opened {
        ordinal,
        kernels: Arc::new(Kernels::new(&device, module)?),
        device: device.clone(),
    });
    Ok(Device::Cuda(device))
}

/// Makes the driver keep freed memory for later allocations. By default it returns the memory to
/// the system at every synchronisation, that is, at every step.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut unlimited = u64::MAX;
    // SAFETY: the device is open, so it has a pool; the attribute is a u64, which the driver
    // copies.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = std::ptr::from_mut(&mut unlimited).cast();
        sys::cuMemPoolSetAttribute(pool, threshold, value)
            .result()
            .w()
    }
}

/// Held exclusively while a step is captured: all work on the stream becomes part of the capture.
static CAPTURE: RwLock<()> = RwLock::new(());

/// Waits until no other thread works on the stream, and makes them wait until the guard is dropped.
pub fn capturing() -> RwLockWriteGuard<'static, ()> {
    CAPTURE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Guard for work of threads that do not run steps. Waits while a step is captured.
pub fn beside_steps() -> RwLockReadGuard<'static, ()> {
    CAPTURE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Free memory of a GPU in bytes.
///
/// # Errors
/// The driver does not report it.
pub fn free_memory(device: &CudaDevice) -> Result<usize> {
    let (free, _) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(free)
}

/// Name of a GPU, as the driver reports it.
pub fn name(device: &CudaDevice) -> String {
    let name = device.cuda_stream().context().name();
    name.unwrap_or_else(|_| "unnamed GPU".to_owned())
}

/// The kernel module of a GPU, and the limits that launches depend on.
pub struct Kernels {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<(&'static str, Option<DType>), CudaFunction>>,
    pub multiprocessors: usize,
    /// Maximum bytes of shared memory per block.
    pub shared_memory: usize,
}

struct Opened {
    ordinal: usize,
    device: CudaDevice,
    kernels: Arc<Kernels>,
}

static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

fn opened() -> MutexGuard<'static, Vec<Opened>> {
    // Only pushes modify the list, so it is valid even if a thread panicked with the lock.
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    fn new(device: &CudaDevice, module: Arc<CudaModule>) -> Result<Self> {
        use sys::CUdevice_attribute as Attribute;
        let attribute = |attribute| -> Result<usize> {
            let value = device.cuda_stream().context().attribute(attribute).w()?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            module,
            functions: Mutex::default(),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        })
    }

    /// The kernels of an opened device.
    ///
    /// # Errors
    /// The device was not opened by [`open`].
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let id = device.id();
        match opened().iter().find(|gpu| gpu.device.id() == id) {
            Some(gpu) => Ok(Arc::clone(&gpu.kernels)),
            None => candle_core::bail!("the GPU was not opened by kernels::cuda::open"),
        }
    }

    /// Kernel by name and dtype.
    ///
    /// # Errors
    /// There is no such kernel.
    pub fn function(&self, name: &'static str, dtype: Option<DType>) -> Result<CudaFunction> {
        let functions = self.functions.lock();
        let mut functions = functions.unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&(name, dtype)) {
            return Ok(function.clone());
        }
        let full = match dtype {
            None => name.to_owned(),
            Some(DType::F32) => format!("{name}_f32"),
            Some(DType::BF16) => format!("{name}_bf16"),
            Some(DType::F16) => format!("{name}_f16"),
            Some(other) => candle_core::bail!("{name}: no kernel for {other:?}"),
        };
        let function = self.module.load_function(&full).w()?;
        if self.shared_memory > 0 {
            // A function must request more than 48 KiB of dynamic shared memory once.
            let size = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let fixed = function.shared_size_bytes().w()?;
            let max = i32::try_from(self.shared_memory).unwrap_or(i32::MAX) - fixed;
            function.set_attribute(size, max).w()?;
        }
        functions.insert((name, dtype), function.clone());
        Ok(function)
    }
}
