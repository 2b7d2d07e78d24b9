//! Memory that is read as a whole, again and again.

use candle_core::{Result, Storage, Tensor};

use super::element::{elements, with_element};

/// Has the system hold a tensor's memory in huge pages, where it is on the CPU and the system has such:
/// a step reads all weights, and their addresses are a good part of what that costs in small pages. The
/// values stay as they are.
pub fn gather(tensor: &Tensor) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    if let Storage::Cpu(storage) = &*storage {
        use candle_core::backend::BackendStorage as _;
        with_element!(storage, T => gather_slice(elements::<T>(storage, layout)?));
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn gather_slice<T>(values: &[T]) {
    /// Of the kernel's `mman.h` since 6.1: to do at once what `MADV_HUGEPAGE` asks for.
    const MADV_COLLAPSE: libc::c_int = 25;
    const HUGE: usize = 2 << 20;
    let start = values.as_ptr().addr();
    let skipped = start.next_multiple_of(HUGE) - start;
    let len = size_of_val(values).saturating_sub(skipped) / HUGE * HUGE;
    if len == 0 {
        return;
    }
    for advice in [libc::MADV_HUGEPAGE, MADV_COLLAPSE] {
        // SAFETY: whole pages within the slice; neither advice changes what they hold. A system that
        // does not know one refuses it, and nothing is lost.
        unsafe {
            let first = values.as_ptr().cast::<u8>().add(skipped);
            libc::madvise(first.cast_mut().cast(), len, advice);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn gather_slice<T>(_: &[T]) {}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn values_stay_as_they_are() {
        for (count, dtype) in [(3, DType::F32), (5 << 20, DType::BF16)] {
            let values = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
            let tensor = values.to_dtype(dtype).unwrap();
            let before = tensor.copy().unwrap();
            gather(&tensor).unwrap();
            let changed = tensor.ne(&before).unwrap().to_dtype(DType::U32).unwrap();
            assert_eq!(changed.sum_all().unwrap().to_scalar::<u32>().unwrap(), 0);
        }
    }
}
