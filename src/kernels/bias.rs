//! In-place addition of a bias.

use candle_core::{CpuStorage, CudaStorage, InplaceOp2, Layout, Result, Tensor};

use super::cpu::element::{elements, elements_mut};
use super::cuda;

/// `y += bias` in every row of `y` `[rows, out]`. The bias is `[out]`, in the dtype of `y`; on a
/// GPU `y` may also be in f32.
pub fn add(y: &Tensor, bias: &Tensor) -> Result<()> {
    y.inplace_op2(bias, &Add)
}

struct Add;

/// Checks that the bias fits the rows, and returns the values per row.
pub(super) fn check(y: &Layout, bias: &Layout) -> Result<usize> {
    let (rows, out) = y.shape().dims2()?;
    if bias.shape().dims() != [out] {
        let bias = bias.shape();
        candle_core::bail!("bias: {bias:?} does not fit rows [{rows}, {out}]");
    }
    Ok(out)
}

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let out = check(y_layout, bias_layout)?;
        let bias = elements::<f32>(bias, bias_layout)?;
        for row in elements_mut::<f32>(y, y_layout)?.chunks_exact_mut(out.max(1)) {
            for (y, bias) in row.iter_mut().zip(bias) {
                *y += bias;
            }
        }
        Ok(())
    }

    fn cuda_fwd(
        &self,
        y: &mut CudaStorage,
        y_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        cuda::bias_add((y, y_layout), (bias, bias_layout))
    }
}
