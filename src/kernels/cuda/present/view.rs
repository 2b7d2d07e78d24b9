//! GPU tensors as kernel arguments: a pointer and a dtype.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use crate::kernels::cpu::element::{contiguous, row_range, with_element};
use crate::kernels::cuda::{InOut, Input, Output};

/// Values that a kernel reads. Their shape is known to the operation that creates the view.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pointer: u64,
    dtype: DType,
    borrow: PhantomData<&'a ()>,
}

/// Values that a kernel writes.
pub struct ViewMut<'a> {
    pointer: u64,
    dtype: DType,
    borrow: PhantomData<&'a mut ()>,
}

impl<'a> View<'a> {
    /// View of a contiguous tensor.
    pub fn new((storage, layout): Input<'a>) -> Result<Self> {
        let (start, _) = contiguous(layout)?;
        Self::at(storage, start)
    }

    /// View of a tensor `[rows, …]` whose other dimensions are contiguous, and its row stride in
    /// values.
    pub fn rows((storage, layout): Input<'a>) -> Result<(Self, usize)> {
        let (range, stride) = row_range(layout)?;
        Ok((Self::at(storage, range.start)?, stride))
    }

    fn at(storage: &'a CudaStorage, offset: usize) -> Result<Self> {
        let dtype = storage.dtype();
        let start = match &storage.slice {
            CudaStorageSlice::U32(slice) => pointer(slice),
            CudaStorageSlice::F32(slice) => pointer(slice),
            CudaStorageSlice::BF16(slice) => pointer(slice),
            CudaStorageSlice::F16(slice) => pointer(slice),
            _ => candle_core::bail!("no kernel supports dtype {dtype:?}"),
        };
        Ok(Self {
            pointer: start + (offset * dtype.size_in_bytes()) as u64,
            dtype,
            borrow: PhantomData,
        })
    }

    /// Address on the device.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same view, checked to have dtype `dtype`.
    ///
    /// # Errors
    /// It has a different dtype.
    pub fn of_dtype(self, dtype: DType) -> Result<Self> {
        check_dtype(self.dtype, dtype)?;
        Ok(self)
    }

    /// View that starts at index `values`.
    ///
    /// # Safety
    /// The view has at least that many values.
    pub unsafe fn skip(self, values: usize) -> Self {
        let skipped = (values * self.dtype.size_in_bytes()) as u64;
        Self {
            pointer: self.pointer + skipped,
            ..self
        }
    }
}

impl<'a> ViewMut<'a> {
    /// View of a contiguous tensor.
    pub fn new((storage, layout): InOut<'a>) -> Result<Self> {
        Ok(View::new((storage, layout))?.into_mut())
    }

    /// As [`View::rows`].
    pub fn rows((storage, layout): InOut<'a>) -> Result<(Self, usize)> {
        let (view, stride) = View::rows((storage, layout))?;
        Ok((view.into_mut(), stride))
    }

    /// Address on the device.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Like [`View::of_dtype`].
    ///
    /// # Errors
    /// Those of [`View::of_dtype`].
    pub fn of_dtype(self, dtype: DType) -> Result<Self> {
        check_dtype(self.dtype, dtype)?;
        Ok(self)
    }
}

impl View<'_> {
    /// Mutable view of the same values, whose storage is borrowed mutably.
    fn into_mut<'a>(self) -> ViewMut<'a> {
        ViewMut {
            pointer: self.pointer,
            dtype: self.dtype,
            borrow: PhantomData,
        }
    }
}

impl ViewMut<'_> {
    /// As [`View::skip`], of the same values.
    ///
    /// # Safety
    /// The view has at least that many values, and the two views are not written at the same time.
    pub unsafe fn skip(&self, values: usize) -> ViewMut<'_> {
        let skipped = (values * self.dtype.size_in_bytes()) as u64;
        ViewMut {
            pointer: self.pointer + skipped,
            ..*self
        }
    }
}

fn check_dtype(found: DType, expected: DType) -> Result<()> {
    if found != expected {
        candle_core::bail!("a kernel needs {expected:?} values, got {found:?}");
    }
    Ok(())
}

/// New contiguous tensor; the next launch writes all of it.
pub struct NewTensor {
    storage: CudaStorage,
    layout: Layout,
}

impl NewTensor {
    /// Uninitialised tensor.
    ///
    /// # Errors
    /// The GPU is out of memory, or the dtype has no kernels.
    pub fn new(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let layout = Layout::contiguous(shape);
        // Even an empty tensor gets an address.
        let n = layout.shape().elem_count().max(1);
        // SAFETY: the caller's kernel writes every value before any is read, in the stream's order.
        let slice = unsafe {
            match dtype {
                DType::U32 => CudaStorageSlice::U32(device.alloc::<u32>(n)?),
                DType::F32 => CudaStorageSlice::F32(device.alloc::<f32>(n)?),
                DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(n)?),
                DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(n)?),
                other => candle_core::bail!("no kernel supports dtype {other:?}"),
            }
        };
        let device = device.clone();
        let storage = CudaStorage { slice, device };
        Ok(Self { storage, layout })
    }

    /// Zeroed tensor.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn zeros(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        use candle_core::backend::BackendDevice as _;
        let layout = Layout::contiguous(shape);
        let storage = device.zeros_impl(layout.shape(), dtype)?;
        Ok(Self { storage, layout })
    }

    /// The whole tensor, to write to.
    pub fn write(&mut self) -> Result<ViewMut<'_>> {
        ViewMut::new((&mut self.storage, &self.layout))
    }

    /// The whole tensor, to read.
    pub fn read(&self) -> Result<View<'_>> {
        View::new((&self.storage, &self.layout))
    }

    /// Copies the values to the host.
    pub fn to_vec<V: CudaDType + DeviceRepr>(&self) -> Result<Vec<V>> {
        copy_to_host((&self.storage, &self.layout))
    }

    /// The storage alone.
    pub fn into_storage(self) -> CudaStorage {
        self.storage
    }

    /// The storage and its shape.
    pub fn into_output(self) -> Output {
        (self.storage, self.layout.shape().clone())
    }

    /// The tensor.
    pub fn into_tensor(self) -> Tensor {
        let storage = Storage::Cuda(self.storage);
        Tensor::from_storage(
            storage,
            self.layout.shape().clone(),
            BackpropOp::none(),
            false,
        )
    }
}

/// Runs `body` on an f32 tensor on a GPU; gives operations that are not candle ops access to the
/// storage.
pub fn with_f32<T>(
    tensor: &Tensor,
    body: impl FnOnce(&CudaDevice, View) -> Result<T>,
) -> Result<T> {
    with_storage(tensor, |input| {
        body(&input.0.device, View::new(input)?.of_dtype(DType::F32)?)
    })
}

/// Like [`with_f32`], for any dtype.
pub fn with_storage<T>(tensor: &Tensor, body: impl FnOnce(Input) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => body((storage, layout)),
        _ => candle_core::bail!("a GPU kernel needs a tensor on a GPU, got {tensor:?}"),
    }
}

/// Address of a buffer, for launches on the device's stream. A caller that writes to it must have
/// borrowed the buffer mutably, or own what contains it (an applied ticket writes to the base's
/// weights).
pub fn pointer<V>(slice: &CudaSlice<V>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// Copies a contiguous tensor's values to the CPU, without the rest of its storage.
pub fn download(tensor: &Tensor) -> Result<Tensor> {
    with_storage(tensor, |input| {
        with_element!(input.0, T => {
            Tensor::from_vec(copy_to_host::<T>(input)?, tensor.shape(), &Device::Cpu)
        })
    })
}

fn copy_to_host<V: CudaDType + DeviceRepr>((storage, layout): Input) -> Result<Vec<V>> {
    let (from, to) = contiguous(layout)?;
    let slice = storage.as_cuda_slice::<V>()?.slice(from..to);
    let values = storage.device.clone_dtoh(&slice)?;
    // Until this call, the copy is asynchronous.
    storage.device.cuda_stream().synchronize().w()?;
    Ok(values)
}

/// Copies values to a GPU. An empty slice gets one value, so that it has an address.
pub fn upload<V: DeviceRepr + Default + Clone + 'static>(
    device: &CudaDevice,
    values: &[V],
) -> Result<CudaSlice<V>> {
    if values.is_empty() {
        return device.clone_htod(&[V::default()]);
    }
    device.clone_htod(values)
}
