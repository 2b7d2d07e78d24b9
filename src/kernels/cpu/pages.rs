//! Huge pages for memory that every step reads as a whole.

use candle_core::{Result, Storage, Tensor};

use super::element::{elements, with_element};

/// Asks the system to back a CPU tensor's memory with huge pages. Each step reads all weights, and
/// with small pages address translation is a good part of the cost. Does nothing for tensors on
/// other devices and on systems without huge pages. The values do not change.
///
/// # Errors
/// The tensor is not contiguous, or its dtype is not f32, bf16 or f16.
pub fn use_huge_pages(tensor: &Tensor) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    if let Storage::Cpu(storage) = &*storage {
        use candle_core::backend::BackendStorage as _;
        with_element!(storage, T => advise_huge_pages(elements::<T>(storage, layout)?));
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn advise_huge_pages<T>(values: &[T]) {
    /// From `mman.h` since Linux 6.1: does synchronously what `MADV_HUGEPAGE` asks for.
    const MADV_COLLAPSE: libc::c_int = 25;
    const HUGE: usize = 2 << 20;
    let start = values.as_ptr().addr();
    let skipped = start.next_multiple_of(HUGE) - start;
    let len = size_of_val(values).saturating_sub(skipped) / HUGE * HUGE;
    if len == 0 {
        return;
    }
    for advice in [libc::MADV_HUGEPAGE, MADV_COLLAPSE] {
        // SAFETY: the range is whole pages within the slice, and neither advice changes their
        // contents. A system that does not know an advice refuses it, which is harmless.
        unsafe {
            let first = values.as_ptr().cast::<u8>().add(skipped);
            libc::madvise(first.cast_mut().cast(), len, advice);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages<T>(_: &[T]) {}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn values_do_not_change() {
        for (count, dtype) in [(3, DType::F32), (5 << 20, DType::BF16)] {
            let values = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
            let tensor = values.to_dtype(dtype).unwrap();
            let before = tensor.copy().unwrap();
            use_huge_pages(&tensor).unwrap();
            let changed = tensor.ne(&before).unwrap().to_dtype(DType::U32).unwrap();
            assert_eq!(changed.sum_all().unwrap().to_scalar::<u32>().unwrap(), 0);
        }
    }
}
