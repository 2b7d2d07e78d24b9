//! A bias, added in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::cpu::element::{elements, elements_mut};

/// `y += bias` in every row of `y` `[rows, out]`; the bias is `[out]`, of one dtype with it (on a GPU `y` may be in f32
/// beside any).
pub fn add(y: &Tensor, bias: &Tensor) -> Result<()> {
    y.inplace_op2(bias, &Add)
}

struct Add;

fn check(y: &Layout, bias: &Layout) -> Result<usize> {
    let (rows, out) = y.shape().dims2()?;
    if bias.shape().dims() != [out] {
        let bias = bias.shape();
        candle_core::bail!("a bias {bias:?} for [{rows}, {out}]");
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &mut candle_core::CudaStorage,
        y_layout: &Layout,
        bias: &candle_core::CudaStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        use super::cuda::{Launch, View, ViewMut};
        use candle_core::DType;
        let out = check(y_layout, bias_layout)?;
        let count = y_layout.shape().elem_count();
        let device = y.device.clone();
        let (y, bias) = (ViewMut::new(y, y_layout)?, View::new(bias, bias_layout)?);
        let (kernel, dtype) = match y.dtype() == bias.dtype() {
            true => ("bias_add", bias.dtype()),
            false => ("bias_add_wide", DType::F32),
        };
        let launch = Launch::new(&device, kernel, bias.dtype())?
            .write(&y.of(dtype)?)
            .read(&bias)
            .size(out)?
            .u64(count as u64);
        // SAFETY: the kernel's arguments; y has rows of as many values as the bias.
        unsafe { launch.run_over(count) }
    }
}
