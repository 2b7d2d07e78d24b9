//! Additions to the residual stream.

use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CudaStorage, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor,
};

use super::cpu::element::{elements, elements_mut};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::dispatch;
use super::cuda;
use super::rms_norm::{self, Normalise};

/// `x += y` for tensors of equal shape: `x` in f32, `y` in the activations' dtype (f32 on the CPU).
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    x.inplace_op2(y, &Add)
}

struct Add;

/// Minimum values per range of a thread: fewer are added faster than they are distributed.
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

    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        cuda::residual_add((x, x_layout), (y, y_layout))
    }
}

/// Fused [`add`] and [`rms_norm::rms_norm`], as between the blocks of a layer: `x += y`, and
/// returns the RMS norm of the sum.
pub fn add_norm(x: &Tensor, y: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let op = AddNorm {
        eps,
        normed: OnceLock::new(),
    };
    x.inplace_op3(y, weight, &op)?;
    let normed = op.normed.into_inner();
    Ok((normed.expect("the operation has run"), x.shape()).into())
}

struct AddNorm {
    eps: f32,
    /// Second result, which a candle in-place op cannot return; in the weight's dtype.
    normed: OnceLock<Storage>,
}

impl AddNorm {
    fn keep(&self, normed: Storage) {
        let set = self.normed.set(normed);
        assert!(set.is_ok(), "an operation runs once");
    }
}

impl InplaceOp3 for AddNorm {
    fn name(&self) -> &'static str {
        "residual-add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        check(x_layout, y_layout)?;
        let n = rms_norm::check(x_layout, weight_layout)?;
        let weight = elements::<f32>(weight, weight_layout)?;
        let y = elements::<f32>(y, y_layout)?;
        let mut normed = vec![0f32; y.len()];
        let out = Scattered::new(&mut normed);
        let x = Scattered::new(elements_mut::<f32>(x, x_layout)?);
        for_each_range(y.len() / n, rms_norm::GRAIN, |range| {
            let all = range.start * n..range.end * n;
            // SAFETY: each row belongs to one thread.
            let (x, out) = unsafe { (x.slice(all.clone()), out.slice(all.clone())) };
            for (x, y) in x.iter_mut().zip(&y[all]) {
                *x += y;
            }
            out.copy_from_slice(x);
            for x in out.chunks_exact_mut(n) {
                let eps = self.eps;
                dispatch(Normalise { x, weight, eps });
            }
        });
        self.keep(Storage::Cpu(CpuStorage::F32(normed)));
        Ok(())
    }

    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let x = (x, x_layout);
        let normed = cuda::add_rms_norm(x, (y, y_layout), (weight, weight_layout), self.eps)?;
        self.keep(Storage::Cuda(normed));
        Ok(())
    }
}

/// Checks that both have the same shape.
pub(super) fn check(x: &Layout, y: &Layout) -> Result<()> {
    if x.shape() != y.shape() {
        let (x, y) = (x.shape(), y.shape());
        candle_core::bail!("residual-add: shapes do not match: {x:?} and {y:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_fused_operation_equals_add_then_norm() {
        for shape in [(1, 3), (70, 100)] {
            let random = |shape| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            let (x, y, weight) = (random(shape), random(shape), random((1, shape.1)));
            let weight = weight.get(0).unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let sum = x.copy().unwrap();
            add(&sum, &y).unwrap();
            let want = rms_norm::rms_norm(&sum, &weight, 1e-5).unwrap();
            let got = add_norm(&x, &y, &weight, 1e-5).unwrap();
            assert_eq!(flat(&x), flat(&sum));
            assert_eq!(got.dims(), want.dims());
            assert_eq!(flat(&got), flat(&want));
            assert!(add_norm(&x, &weight, &weight, 1e-5).is_err());
        }
    }

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
