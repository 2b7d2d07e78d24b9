//! The optimizer step, and the norm that gradients are clipped by.

use candle_core::DType::F32;
use candle_core::{Result, Tensor};

use crate::kernels::cuda::present::launch::Launch;
use crate::kernels::cuda::present::view::{NewTensor, View, ViewMut, with_f32};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::training::optimizer::{Power, Step, check};

/// [`update_mean`](crate::kernels::training::optimizer::update_mean).
pub fn update_mean(
    mean: InOut,
    gradient: Input,
    power: Power,
    beta: f32,
    scale: f32,
) -> Result<()> {
    check(mean.1, gradient.1)?;
    let (count, device) = (mean.1.shape().elem_count(), mean.0.device.clone());
    let launch = Launch::single(&device, "update_mean")?
        .write(&ViewMut::new(mean)?.of_dtype(F32)?)
        .read(&View::new(gradient)?.of_dtype(F32)?)
        .u64(count as u64)
        .u32(u32::from(power == Power::Square))
        .f32(beta)
        .f32(scale);
    // SAFETY: update_mean's arguments; both have that many values (checked).
    unsafe { launch.run_over(count) }
}

/// [`Step::take`].
pub fn optimizer_step(
    weights: InOut,
    direction: Input,
    mean_square: Input,
    step: &Step,
) -> Result<()> {
    check(weights.1, direction.1)?;
    check(weights.1, mean_square.1)?;
    let (count, device) = (weights.1.shape().elem_count(), weights.0.device.clone());
    let launch = Launch::single(&device, "optimizer_step")?
        .write(&ViewMut::new(weights)?.of_dtype(F32)?)
        .read(&View::new(direction)?.of_dtype(F32)?)
        .read(&View::new(mean_square)?.of_dtype(F32)?)
        .u64(count as u64)
        .f32(step.rate)
        .f32(step.root)
        .f32(step.eps)
        .f32(step.keep);
    // SAFETY: optimizer_step's arguments; all have that many values (checked).
    unsafe { launch.run_over(count) }
}

/// [`sum_of_squares`](crate::kernels::training::optimizer::sum_of_squares).
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    /// Values per block of threads.
    const BLOCK: usize = 1 << 14;
    let count = tensor.elem_count();
    with_f32(tensor, |device, values| {
        let blocks = count.div_ceil(BLOCK);
        let mut sums = NewTensor::new(device, F32, blocks)?;
        let launch = Launch::single(device, "sum_of_squares")?
            .write(&sums.write()?)
            .read(&values)
            .u64(count as u64)
            .size(BLOCK)?;
        // SAFETY: sum_of_squares' arguments; a sum for each block.
        unsafe { launch.run_rows(blocks) }?;
        let sums = sums.to_vec::<f32>()?;
        Ok(sums.into_iter().map(f64::from).sum())
    })
}
