//! Linear layer and its weight gradient, with cuBLAS.

use candle_core::{DType, Result};

use super::gemm::{Product, add_transposed_product, product};
use super::view::{NewTensor, View, ViewMut};
use crate::kernels::cpu::gemm;
use crate::kernels::cuda::{InOut, Input, Output};
use crate::kernels::linear;

/// `x·Wᵀ` in the weight's dtype, or in f32 if `f32_output`.
pub fn linear(x: Input, weight: Input, f32_output: bool) -> Result<Output> {
    let [rows, inner, out] = linear::check(x.1, weight.1)?;
    let (device, weight) = (&x.0.device, View::new(weight)?);
    let dtype = if f32_output {
        DType::F32
    } else {
        weight.dtype()
    };
    let mut y = NewTensor::new(device, dtype, (rows, out))?;
    let operands = Product {
        x: View::new(x)?,
        weight,
        y: y.write()?,
        shape: [rows, inner, out],
        scale: 1.0,
        keep: 0.0,
    };
    // SAFETY: matrices of that shape (checked).
    unsafe { product(device, &operands) }?;
    Ok(y.into_output())
}

/// [`add_weight_gradient`](gemm::add_weight_gradient).
pub fn add_weight_gradient(gradient: InOut, dy: Input, x: Input) -> Result<()> {
    let shape = gemm::check(gradient.1, dy.1, x.1)?;
    let device = gradient.0.device.clone();
    let gradient = ViewMut::new(gradient)?;
    let factors = [View::new(x)?, View::new(dy)?];
    // SAFETY: matrices of that shape (checked).
    unsafe { add_transposed_product(&device, &gradient, factors, shape) }
}
