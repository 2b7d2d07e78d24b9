//! RMS normalisation and its backward pass.

use candle_core::DType::F32;
use candle_core::{Result, Tensor};

use super::launch::Launch;
use super::view::{NewTensor, View, with_f32};
use crate::kernels::cuda::{Input, Output};
use crate::kernels::rms_norm::{check, check_gradient, check_weight_gradient};

/// [`rms_norm`](crate::kernels::rms_norm::rms_norm): the result is in the weight's dtype.
pub fn rms_norm(x: Input, weight: Input, eps: f32) -> Result<Output> {
    let (shape, n) = (x.1.shape(), check(x.1, weight.1)?);
    let (device, weight) = (&x.0.device, View::new(weight)?);
    let mut y = NewTensor::new(device, weight.dtype(), shape)?;
    let launch = Launch::new(device, "rms_norm", weight.dtype())?
        .write(&y.write()?)
        .read(&View::new(x)?.of_dtype(F32)?)
        .read(&weight)
        .size(n)?
        .f32(eps);
    // SAFETY: rms_norm's arguments; x and y have rows of n values (checked).
    unsafe { launch.run_rows(shape.elem_count() / n.max(1)) }?;
    Ok(y.into_output())
}

/// [`rms_norm_backward`](crate::kernels::rms_norm::rms_norm_backward) in f32.
pub fn rms_norm_backward(x: Input, weight: Input, dy: Input, eps: f32) -> Result<Output> {
    let n = check_gradient(x.1, weight.1, dy.1)?;
    let (shape, device) = (x.1.shape(), &x.0.device);
    let mut dx = NewTensor::new(device, F32, shape)?;
    let launch = Launch::single(device, "rms_norm_backward")?
        .write(&dx.write()?)
        .read(&View::new(x)?.of_dtype(F32)?)
        .read(&View::new(weight)?.of_dtype(F32)?)
        .read(&View::new(dy)?.of_dtype(F32)?)
        .size(n)?
        .f32(eps);
    // SAFETY: rms_norm_backward's arguments; all have rows of n values (checked).
    unsafe { launch.run_rows(shape.elem_count() / n.max(1)) }?;
    Ok(dx.into_output())
}

/// [`rms_norm_weight_gradient`](crate::kernels::rms_norm::rms_norm_weight_gradient) in f32.
pub fn rms_norm_weight_gradient(x: &Tensor, dy: &Tensor, eps: f32) -> Result<Tensor> {
    let [rows, n] = check_weight_gradient(x, dy)?;
    with_f32(x, |device, x| {
        with_f32(dy, |_, dy| {
            let mut inverse = NewTensor::new(device, F32, rows)?;
            let launch = Launch::single(device, "rms_inverse")?
                .write(&inverse.write()?)
                .read(&x)
                .size(n)?
                .f32(eps);
            // SAFETY: rms_inverse's arguments; x has that many rows of n values (checked).
            unsafe { launch.run_rows(rows) }?;
            let mut gradient = NewTensor::new(device, F32, n)?;
            let launch = Launch::single(device, "rms_norm_weight_gradient")?
                .write(&gradient.write()?)
                .read(&x)
                .read(&dy)
                .read(&inverse.read()?)
                .size(rows)?
                .size(n)?;
            // SAFETY: rms_norm_weight_gradient's arguments; x and dy have that many rows of n
            // values (checked).
            unsafe { launch.run_columns(n) }?;
            Ok(gradient.into_tensor())
        })
    })
}
