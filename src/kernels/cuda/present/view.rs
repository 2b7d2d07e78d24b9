//! Tensors on a GPU as kernels take them: a pointer and a dtype.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use crate::kernels::cpu::element::{contiguous, row_range, with_element};
use crate::kernels::cuda::{InOut, Input, Output};

/// Values that a kernel reads. The operation that makes the view knows their shape.
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
            _ => candle_core::bail!("no kernel for {dtype:?}"),
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

    /// The same view.
    ///
    /// # Errors
    /// Its values have another dtype.
    pub fn of_dtype(self, dtype: DType) -> Result<Self> {
        check_dtype(self.dtype, dtype)?;
        Ok(self)
    }

    /// View from the value at index `values` on.
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

    /// As [`View::of_dtype`].
    ///
    /// # Errors
    /// As there.
    pub fn of_dtype(self, dtype: DType) -> Result<Self> {
        check_dtype(self.dtype, dtype)?;
        Ok(self)
    }
}

impl View<'_> {
    /// The same values to write, of a storage that is borrowed mutably.
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
        candle_core::bail!("a kernel for {expected:?} was given {found:?}");
    }
    Ok(())
}

/// A new contiguous tensor, which the next launch writes as a whole.
pub struct NewTensor {
    storage: CudaStorage,
    layout: Layout,
}

impl NewTensor {
    /// Memory for a tensor, not initialised.
    ///
    /// # Errors
    /// There is no memory, or kernels do not know the dtype.
    pub fn new(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let layout = Layout::contiguous(shape);
        // An empty tensor has an address too.
        let n = layout.shape().elem_count().max(1);
        // SAFETY: the caller's kernel writes every value before any is read, in the stream's order.
        let slice = unsafe {
            match dtype {
                DType::U32 => CudaStorageSlice::U32(device.alloc::<u32>(n)?),
                DType::F32 => CudaStorageSlice::F32(device.alloc::<f32>(n)?),
                DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(n)?),
                DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(n)?),
                other => candle_core::bail!("no kernel for {other:?}"),
            }
        };
        let device = device.clone();
        let storage = CudaStorage { slice, device };
        Ok(Self { storage, layout })
    }

    /// A tensor of zeros.
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

/// Runs `body` on a tensor that is in f32 on a GPU: the way to the storage for operations that are
/// no candle ops.
pub fn with_f32<T>(
    tensor: &Tensor,
    body: impl FnOnce(&CudaDevice, View) -> Result<T>,
) -> Result<T> {
    with_storage(tensor, |input| {
        body(&input.0.device, View::new(input)?.of_dtype(DType::F32)?)
    })
}

/// As [`with_f32`], for any dtype.
pub fn with_storage<T>(tensor: &Tensor, body: impl FnOnce(Input) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => body((storage, layout)),
        _ => candle_core::bail!("a GPU kernel was given {tensor:?}"),
    }
}

/// Address of a buffer, for launches on the device's one stream. A caller that writes there has
/// borrowed the buffer mutably, or owns what it is part of (as an applied ticket writes the base's
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
    // The copy is asynchronous until then.
    storage.device.cuda_stream().synchronize().w()?;
    Ok(values)
}

/// Copies values to a GPU. Of an empty slice one value is copied, so that it has an address.
pub fn upload<V: DeviceRepr + Default + Clone + 'static>(
    device: &CudaDevice,
    values: &[V],
) -> Result<CudaSlice<V>> {
    if values.is_empty() {
        return device.clone_htod(&[V::default()]);
    }
    device.clone_htod(values)
}
