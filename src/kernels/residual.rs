//! The residual stream.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::element::{elements, elements_mut};
use super::parallel::{Scattered, for_each_range};

/// `x += y`, for two tensors of one shape: `x` in f32, `y` in the activations' dtype (f32 on the CPU).
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    x.inplace_op2(y, &Add)
}

struct Add;

/// Numbers that a thread takes at least: fewer are added sooner than they are shared out.
const GRAIN: usize = 16 << 10;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        check(x_layout, y_layout)?;
        let y = elements::<f32>(y, y_layout)?;
        let x = Scattered::new(elements_mut::<f32>(x, x_layout)?);
        for_each_range(y.len(), GRAIN, |range| {
            // SAFETY: ranges do not overlap.
            let x = unsafe { x.slice(range.clone()) };
            for (x, y) in x.iter_mut().zip(&y[range]) {
                *x += y;
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut candle_core::CudaStorage,
        x_layout: &Layout,
        y: &candle_core::CudaStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        use super::cuda::{Launch, View, ViewMut};
        check(x_layout, y_layout)?;
        let count = x_layout.shape().elem_count();
        let y = View::new(y, y_layout)?;
        let device = x.device.clone();
        let launch = Launch::new(&device, "residual_add", y.dtype())?
            .write(&ViewMut::new(x, x_layout)?.of(candle_core::DType::F32)?)
            .read(&y)
            .u64(count as u64);
        // SAFETY: residual_add's arguments; both have so many values.
        unsafe { launch.run_over(count) }
    }
}

fn check(x: &Layout, y: &Layout) -> Result<()> {
    if x.shape() != y.shape() {
        let (x, y) = (x.shape(), y.shape());
        candle_core::bail!("residual-add: {x:?} and {y:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn adds_in_place() {
        for shape in [(1, 3), (70, 1000)] {
            let random = || Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            let (x, y) = (random(), random());
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let want = flat(&(&x + &y).unwrap());
            add(&x, &y).unwrap();
            assert_eq!(flat(&x), want);
        }
        let [x, y] = [(1, 3), (3, 1)].map(|s| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
        assert!(add(&x, &y).is_err());
    }
}
