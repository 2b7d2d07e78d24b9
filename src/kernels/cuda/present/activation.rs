//! Gated activation of the MLP, and its backward pass.

use candle_core::{DType, Result, Shape};

use super::launch::Launch;
use super::view::{NewTensor, View};
use crate::kernels::activation::check_gradient;
use crate::kernels::cuda::{Input, Output};

/// [`silu_mul`](crate::kernels::activation::silu_mul) in the dtype of `gate_up`.
pub fn silu_mul(gate_up: Input) -> Result<Output> {
    let (rows, width) = gate_up.1.shape().dims2()?;
    let shape = Shape::from((rows, width / 2));
    let count = shape.elem_count();
    let (device, view) = (&gate_up.0.device, View::new(gate_up)?);
    let mut y = NewTensor::new(device, view.dtype(), shape)?;
    let launch = Launch::new(device, "silu_mul", view.dtype())?
        .write(&y.write()?)
        .read(&view)
        .size(width / 2)?
        .u64(count as u64);
    // SAFETY: silu_mul's arguments; y has a value for each pair of gate and up.
    unsafe { launch.run_over(count) }?;
    Ok(y.into_output())
}

/// [`silu_mul_backward`](crate::kernels::activation::silu_mul_backward) in f32.
pub fn silu_mul_backward(gate_up: Input, dy: Input) -> Result<Output> {
    let n = check_gradient(gate_up.1, dy.1)?;
    let device = &gate_up.0.device;
    let mut dx = NewTensor::new(device, DType::F32, gate_up.1.shape())?;
    let count = dy.1.shape().elem_count();
    let launch = Launch::single(device, "silu_mul_backward")?
        .write(&dx.write()?)
        .read(&View::new(gate_up)?.of_dtype(DType::F32)?)
        .read(&View::new(dy)?.of_dtype(DType::F32)?)
        .size(n)?
        .u64(count as u64);
    // SAFETY: silu_mul_backward's arguments; dy has a value for each pair of gate and up (checked).
    unsafe { launch.run_over(count) }?;
    Ok(dx.into_output())
}
