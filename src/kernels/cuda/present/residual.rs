//! Additions to the residual stream.

use candle_core::{CudaStorage, DType, Result};

use super::launch::Launch;
use super::view::{NewTensor, View, ViewMut};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::{residual, rms_norm};

/// [`add`](residual::add): `x` is in f32, `y` in any dtype.
pub fn residual_add(x: InOut, y: Input) -> Result<()> {
    residual::check(x.1, y.1)?;
    let (count, device) = (x.1.shape().elem_count(), x.0.device.clone());
    let y = View::new(y)?;
    let launch = Launch::new(&device, "residual_add", y.dtype())?
        .write(&ViewMut::new(x)?.of_dtype(DType::F32)?)
        .read(&y)
        .u64(count as u64);
    // SAFETY: residual_add's arguments; both have that many values (checked).
    unsafe { launch.run_over(count) }
}

/// [`add_norm`](residual::add_norm): the result is in the weight's dtype.
pub fn add_rms_norm(x: InOut, y: Input, weight: Input, eps: f32) -> Result<CudaStorage> {
    residual::check(x.1, y.1)?;
    let (shape, n) = (x.1.shape(), rms_norm::check(x.1, weight.1)?);
    let (device, weight) = (x.0.device.clone(), View::new(weight)?);
    let mut normed = NewTensor::new(&device, weight.dtype(), shape)?;
    let launch = Launch::new(&device, "add_rms_norm", weight.dtype())?
        .write(&normed.write()?)
        .write(&ViewMut::new(x)?.of_dtype(DType::F32)?)
        .read(&View::new(y)?.of_dtype(weight.dtype())?)
        .read(&weight)
        .size(n)?
        .f32(eps);
    // SAFETY: add_rms_norm's arguments; x, y and the result have rows of n values (checked).
    unsafe { launch.run_rows(shape.elem_count() / n.max(1)) }?;
    Ok(normed.into_storage())
}
