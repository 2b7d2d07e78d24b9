//! Tensors of a GPU as kernels take them: a pointer and a dtype.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result, Shape};
use half::{bf16, f16};

use crate::kernels::cpu::element::{contiguous, row_range};

/// Values of a GPU to read, where the operation may rely on their shape.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pointer: u64,
    dtype: DType,
    of: PhantomData<&'a ()>,
}

/// Values of a GPU to write.
pub struct ViewMut<'a> {
    pointer: u64,
    dtype: DType,
    of: PhantomData<&'a mut ()>,
}

impl<'a> View<'a> {
    /// A contiguous tensor.
    pub fn new(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let (from, _) = contiguous(layout)?;
        Self::at(storage, from)
    }

    /// A view `[rows, …]` whose other dimensions are contiguous, and how far its rows are apart.
    pub fn rows(storage: &'a CudaStorage, layout: &Layout) -> Result<(Self, usize)> {
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
            of: PhantomData,
        })
    }

    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The view, if it is of that dtype.
    pub fn of(self, dtype: DType) -> Result<Self> {
        expect(self.dtype, dtype)?;
        Ok(self)
    }
}

impl<'a> ViewMut<'a> {
    /// A contiguous tensor.
    pub fn new(storage: &'a mut CudaStorage, layout: &Layout) -> Result<Self> {
        Ok(View::new(storage, layout)?.to_write())
    }

    /// As [`View::rows`].
    pub fn rows(storage: &'a mut CudaStorage, layout: &Layout) -> Result<(Self, usize)> {
        let (view, stride) = View::rows(storage, layout)?;
        Ok((view.to_write(), stride))
    }

    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The view, if it is of that dtype.
    pub fn of(self, dtype: DType) -> Result<Self> {
        expect(self.dtype, dtype)?;
        Ok(self)
    }
}

impl View<'_> {
    /// Of a storage that was borrowed to write.
    fn to_write<'a>(self) -> ViewMut<'a> {
        ViewMut {
            pointer: self.pointer,
            dtype: self.dtype,
            of: PhantomData,
        }
    }
}

fn expect(found: DType, expected: DType) -> Result<()> {
    if found != expected {
        candle_core::bail!("a kernel for {expected:?} was given {found:?}");
    }
    Ok(())
}

/// Where a buffer lies, for launches on the device's one stream: whoever writes there has borrowed the buffer to
/// write, or owns what it is a part of (as a base's weights are written by the ticket that is applied).
pub(in crate::kernels) fn pointer<V>(slice: &CudaSlice<V>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// The values of a contiguous tensor, here.
pub fn download<V: CudaDType + DeviceRepr>(
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Vec<V>> {
    let (from, to) = contiguous(layout)?;
    let values = storage
        .device
        .clone_dtoh(&storage.as_cuda_slice::<V>()?.slice(from..to))?;
    // The copy is only asked for until then.
    storage.device.cuda_stream().synchronize().w()?;
    Ok(values)
}

/// A result: memory that the kernel which is launched next writes as a whole.
pub fn alloc(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<CudaStorage> {
    // Also nothing has an address.
    let n = shape.into().elem_count().max(1);
    // SAFETY: the caller's kernel writes every value before anybody reads one, in the stream's order.
    let slice = unsafe {
        match dtype {
            DType::U32 => CudaStorageSlice::U32(device.alloc::<u32>(n)?),
            DType::F32 => CudaStorageSlice::F32(device.alloc::<f32>(n)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(n)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(n)?),
            other => candle_core::bail!("no kernel for {other:?}"),
        }
    };
    Ok(CudaStorage {
        slice,
        device: device.clone(),
    })
}

/// Copies values to a GPU; an empty slice takes a byte there, so that it has an address.
pub fn upload<V: DeviceRepr + Default + Clone + 'static>(
    device: &CudaDevice,
    values: &[V],
) -> Result<CudaSlice<V>> {
    if values.is_empty() {
        return device.clone_htod(&[V::default()]);
    }
    device.clone_htod(values)
}

impl<'a> View<'a> {
    /// What follows the first `values` values.
    ///
    /// # Safety
    /// There are as many.
    pub unsafe fn skip(self, values: usize) -> Self {
        let skipped = (values * self.dtype.size_in_bytes()) as u64;
        Self {
            pointer: self.pointer + skipped,
            ..self
        }
    }
}

impl ViewMut<'_> {
    /// As [`View::skip`], of the same values.
    ///
    /// # Safety
    /// There are as many, and the two are not written at once.
    pub unsafe fn skip(&self, values: usize) -> ViewMut<'_> {
        let skipped = (values * self.dtype.size_in_bytes()) as u64;
        ViewMut {
            pointer: self.pointer + skipped,
            ..*self
        }
    }
}
