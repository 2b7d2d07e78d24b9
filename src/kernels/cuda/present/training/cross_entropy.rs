//! The loss of next tokens and its gradient.

use candle_core::DType::F32;
use candle_core::cuda::CudaDevice;
use candle_core::{Result, Tensor};

use crate::kernels::cuda::InOut;
use crate::kernels::cuda::present::launch::Launch;
use crate::kernels::cuda::present::view::{NewTensor, ViewMut, pointer, upload, with_f32};
use crate::kernels::training::cross_entropy::check;

/// [`nll`](crate::kernels::training::cross_entropy::nll).
pub fn nll(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let vocabulary = check(logits.shape(), targets)?;
    with_f32(logits, |device, logits| {
        // SAFETY: logits of that shape (checked), which stay as they are.
        unsafe { losses(device, logits.pointer(), targets, vocabulary, None) }
    })
}

/// [`cross_entropy`](crate::kernels::training::cross_entropy::cross_entropy).
pub fn cross_entropy(logits: InOut, targets: &[u32], weight: f32) -> Result<Vec<f32>> {
    let vocabulary = check(logits.1.shape(), targets)?;
    let device = logits.0.device.clone();
    let logits = ViewMut::new(logits)?.of_dtype(F32)?;
    // SAFETY: logits of that shape (checked), which are borrowed mutably.
    unsafe { losses(&device, logits.pointer(), targets, vocabulary, Some(weight)) }
}

/// Losses of the targets, one per row. If `weight` is given, the logits become the gradient of the
/// weight times the sum of the losses.
///
/// # Safety
/// `logits` points to `[targets, vocabulary]` in f32, which may be written if `weight` is given;
/// the targets are below `vocabulary`.
unsafe fn losses(
    device: &CudaDevice,
    logits: u64,
    targets: &[u32],
    vocabulary: usize,
    weight: Option<f32>,
) -> Result<Vec<f32>> {
    let mut losses = NewTensor::new(device, F32, targets.len())?;
    let on_device = upload(device, targets)?;
    let launch = Launch::single(device, "cross_entropy")?
        .write(&losses.write()?)
        .u64(logits)
        .u64(pointer(&on_device))
        .size(vocabulary)?
        .f32(weight.unwrap_or(0.0))
        .u32(u32::from(weight.is_some()));
    // SAFETY: cross_entropy's arguments; the caller's promise.
    unsafe { launch.run_rows(targets.len()) }?;
    losses.to_vec()
}
