//! The residual stream.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::element::{elements, elements_mut};
use super::parallel::{Scattered, for_each_range};

/// `x += y`, in f32, for two tensors of one shape.
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
        if x_layout.shape() != y_layout.shape() {
            let (x, y) = (x_layout.shape(), y_layout.shape());
            candle_core::bail!("residual-add: {x:?} and {y:?}");
        }
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
