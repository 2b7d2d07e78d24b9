//! Element types of weights and KV blocks, and access to CPU tensors of them.

use std::ops::{Deref, Range};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::simd::{LANES, Wide};

/// A stored number type: widened to f32 to compute, rounded to nearest even to store.
pub trait Element: WithDType + Default {
    /// The f32 equal to this value.
    fn widen(self) -> f32;
    /// The stored value nearest to `value`; ties go to even.
    fn round(value: f32) -> Self;
    /// The f32 values equal to these [`LANES`] values.
    fn widen_lanes<V: Wide>(values: &[Self; LANES]) -> V;
    /// The same values as bf16, if that is the type.
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        let _ = values;
        None
    }
    /// The values of a CPU storage of this type, mutably; `None` if it is of another type.
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widen_lanes<V: Wide>(values: &[Self; LANES]) -> V {
        V::load(values)
    }

    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // By hand, because `to_f32` branches on NaN and would not vectorise.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        bf16::from_f32(value)
    }

    #[inline(always)]
    fn widen_lanes<V: Wide>(values: &[Self; LANES]) -> V {
        V::widen(values)
    }

    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }

    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        f16::from_f32(value)
    }

    #[inline(always)]
    fn widen_lanes<V: Wide>(values: &[Self; LANES]) -> V {
        V::load(&values.map(f16::to_f32))
    }

    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F16(values) => Some(values),
            _ => None,
        }
    }
}

/// A column index in one of the widths that tickets use.
pub trait Column: Copy + Sync {
    /// The index as a `usize`.
    fn index(self) -> usize;
}

impl Column for u16 {
    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }
}

impl Column for u32 {
    #[inline(always)]
    fn index(self) -> usize {
        self as usize
    }
}

/// The elements of a contiguous CPU tensor.
pub fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (from, to) = contiguous(layout)?;
    Ok(&storage.as_slice::<T>()?[from..to])
}

/// The elements of a contiguous CPU tensor, mutably.
pub fn elements_mut<'a, T: Element>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    let (from, to) = contiguous(layout)?;
    let dtype = storage.dtype();
    match T::values_mut(storage) {
        Some(values) => Ok(&mut values[from..to]),
        None => candle_core::bail!("a kernel for {:?} was given {dtype:?}", T::DTYPE),
    }
}

/// The rows of a view `[rows, …]` whose other dimensions are contiguous: a slice that starts at the
/// first row, and the stride between rows.
pub fn rows<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<(&'a [T], usize)> {
    let (range, stride) = row_range(layout)?;
    Ok((&storage.as_slice::<T>()?[range], stride))
}

/// Like [`rows`], mutably.
pub fn rows_mut<'a, T: Element>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<(&'a mut [T], usize)> {
    let (range, stride) = row_range(layout)?;
    let dtype = storage.dtype();
    match T::values_mut(storage) {
        Some(values) => Ok((&mut values[range], stride)),
        None => candle_core::bail!("a kernel for {:?} was given {dtype:?}", T::DTYPE),
    }
}

/// Range of the rows of such a view in its storage, and the stride between rows.
pub(in crate::kernels) fn row_range(layout: &Layout) -> Result<(Range<usize>, usize)> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut size = 1;
    for (&dim, &stride) in dims.iter().zip(strides).skip(1).rev() {
        if dim != 1 && stride != size {
            candle_core::bail!("a kernel needs contiguous rows, got {layout:?}");
        }
        size *= dim;
    }
    let (Some(&rows), Some(&stride)) = (dims.first(), strides.first()) else {
        candle_core::bail!("a kernel needs a tensor with rows, got {layout:?}");
    };
    if rows > 1 && stride < size {
        candle_core::bail!("a kernel needs rows that do not overlap, got {layout:?}");
    }
    let start = layout.start_offset();
    let len = if rows == 0 {
        0
    } else {
        (rows - 1) * stride + size
    };
    Ok((start..start + len, stride.max(size)))
}

/// The values of a contiguous f32 CPU tensor, under a read lock: for operations with more inputs or
/// outputs than candle's custom operations support.
pub fn values(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, range }),
        _ => candle_core::bail!("a kernel needs an f32 tensor on the CPU, got {tensor:?}"),
    }
}

/// A read lock on a storage and a range of it.
struct Values<S> {
    storage: S,
    range: (usize, usize),
}

impl<S: Deref<Target = Storage>> Deref for Values<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.0..self.range.1],
            _ => unreachable!("checked by `values`"),
        }
    }
}

/// Start and end of a contiguous tensor's elements in its storage.
pub(in crate::kernels) fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => candle_core::bail!("a kernel needs a contiguous tensor, got {layout:?}"),
    }
}

/// Runs `$body` with `$T` bound to the element type of `$storage`.
macro_rules! with_element {
    ($storage:expr, $T:ident => $body:expr) => {
        match $storage.dtype() {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => candle_core::bail!("no kernel for {other:?} weights"),
        }
    };
}
pub(in crate::kernels) use with_element;
