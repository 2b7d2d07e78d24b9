//! Sums that are kept in place.

use candle_core::DType::F32;
use candle_core::Result;
use candle_core::cuda::WrapErr;

use crate::kernels::cpu::element::contiguous;
use crate::kernels::cuda::present::launch::Launch;
use crate::kernels::cuda::present::view::{View, ViewMut, pointer, upload};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::training::accumulate::{check, check_rows};

/// [`clear`](crate::kernels::training::accumulate::clear).
pub fn clear((target, layout): InOut) -> Result<()> {
    let (from, to) = contiguous(layout)?;
    let device = target.device.clone();
    let mut values = target.as_cuda_slice_mut::<f32>()?.slice_mut(from..to);
    device.cuda_stream().memset_zeros(&mut values).w()
}

/// `target += values`, or `target += |values|` if `absolute`.
pub fn accumulate(target: InOut, values: Input, absolute: bool) -> Result<()> {
    check(target.1, values.1)?;
    let (count, device) = (target.1.shape().elem_count(), target.0.device.clone());
    let launch = Launch::single(&device, "accumulate")?
        .write(&ViewMut::new(target)?.of_dtype(F32)?)
        .read(&View::new(values)?.of_dtype(F32)?)
        .u64(count as u64)
        .u32(u32::from(absolute));
    // SAFETY: accumulate's arguments; both have that many values (checked).
    unsafe { launch.run_over(count) }
}

/// [`add_rows`](crate::kernels::training::accumulate::add_rows).
pub fn accumulate_rows(target: InOut, rows: &[u32], values: Input) -> Result<()> {
    let width = check_rows(rows, target.1, values.1)?;
    let device = target.0.device.clone();
    let indices = upload(&device, rows)?;
    let launch = Launch::single(&device, "accumulate_rows")?
        .write(&ViewMut::new(target)?.of_dtype(F32)?)
        .u64(pointer(&indices))
        .read(&View::new(values)?.of_dtype(F32)?)
        .size(rows.len())?
        .size(width)?;
    // SAFETY: accumulate_rows' arguments; every index is a row of the target (checked).
    unsafe { launch.run_columns(width) }
}
