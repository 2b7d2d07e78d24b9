//! RMS normalisation, `y = w·x·r` with `r = 1/√(mean(x²) + ε)`, and its backward pass.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::element::{elements, values};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch, sum_lanes};
use super::cuda;

/// RMS norm of each row of `x` `[…, n]`, times the weight `[n]`. `x` is in f32, the result in the
/// weight's dtype (f32 on the CPU).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &Forward { eps })
}

struct Forward {
    eps: f32,
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n = check(x_layout, weight_layout)?;
        let shape = x_layout.shape();
        let weight = elements::<f32>(weight, weight_layout)?;
        let x = elements::<f32>(x, x_layout)?;
        let mut y = vec![0f32; x.len()];
        let out = Scattered::new(&mut y);
        for_each_range(x.len() / n, GRAIN, |range| {
            let all = range.start * n..range.end * n;
            // SAFETY: each row belongs to one thread.
            let y = unsafe { out.slice(all.clone()) };
            for (x, y) in x[all].chunks_exact(n).zip(y.chunks_exact_mut(n)) {
                y.copy_from_slice(x);
                dispatch(Normalise {
                    x: y,
                    weight,
                    eps: self.eps,
                });
            }
        });
        Ok((CpuStorage::F32(y), shape.clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::rms_norm((x, x_layout), (weight, weight_layout), self.eps)
    }
}

/// Checks that the weight fits the rows, and returns the values per row.
pub(super) fn check(x: &Layout, weight: &Layout) -> Result<usize> {
    let (shape, n) = (x.shape(), weight.shape().elem_count());
    if shape.dims().last() != Some(&n) {
        candle_core::bail!("rms-norm: shapes do not match: x {shape:?}, {n} weights");
    }
    Ok(n)
}

/// Minimum rows per range of a thread.
pub(super) const GRAIN: usize = 8;

/// In-place RMS norm of a row.
pub(super) struct Normalise<'a> {
    pub x: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
}

impl Vectorised for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { x, weight, eps } = self;
        let inverse = Inverse { x, eps }.run::<A>();
        for (x, weight) in x.iter_mut().zip(weight) {
            *x *= inverse * weight;
        }
    }
}

/// Gradient of `x` `[…, n]` from the gradient `dy` of the result: `r·(w∘dy − x·r²·mean(w∘dy∘x))`.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, dy: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op3_no_bwd(weight, dy, &Backward { eps })
}

/// Gradient of the weight `[n]`: the sum over rows of `dy∘x·r`.
pub fn rms_norm_weight_gradient(x: &Tensor, dy: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cuda() {
        return cuda::rms_norm_weight_gradient(x, dy, eps);
    }
    let [_, n] = check_weight_gradient(x, dy)?;
    let (xv, dy) = (values(x)?, values(dy)?);
    let mut gradient = vec![0f32; n];
    for (x, dy) in xv.chunks_exact(n).zip(dy.chunks_exact(n)) {
        let inverse = dispatch(Inverse { x, eps });
        for ((gradient, x), dy) in gradient.iter_mut().zip(x).zip(dy) {
            *gradient += dy * x * inverse;
        }
    }
    Tensor::from_vec(gradient, n, x.device())
}

struct Backward {
    eps: f32,
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "rms-norm-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        let weight = elements::<f32>(weight, weight_layout)?;
        let n = check_gradient(x_layout, weight_layout, dy_layout)?;
        let (x, dy) = (
            elements::<f32>(x, x_layout)?,
            elements::<f32>(dy, dy_layout)?,
        );
        let mut dx = vec![0f32; x.len()];
        let out = Scattered::new(&mut dx);
        for_each_range(x.len() / n, GRAIN, |range| {
            for row in range {
                let row = row * n..(row + 1) * n;
                let (x, dy) = (&x[row.clone()], &dy[row.clone()]);
                // SAFETY: each row belongs to one thread.
                let dx = unsafe { out.slice(row) };
                let inverse = dispatch(Inverse { x, eps: self.eps });
                dispatch(Row {
                    x,
                    weight,
                    dy,
                    inverse,
                    dx,
                });
            }
        });
        Ok((CpuStorage::F32(dx), shape.clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let weight = (weight, weight_layout);
        cuda::rms_norm_backward((x, x_layout), weight, (dy, dy_layout), self.eps)
    }
}

/// Checks that the gradient has the size of `x`, and returns `[rows, n]` of `x`.
pub(super) fn check_weight_gradient(x: &Tensor, dy: &Tensor) -> Result<[usize; 2]> {
    let n = x.dim(candle_core::D::Minus1)?;
    if x.elem_count() != dy.elem_count() {
        candle_core::bail!("rms-norm backward: shapes do not match: x {x:?}, gradient {dy:?}");
    }
    Ok([x.elem_count() / n.max(1), n])
}

/// Checks that weight and gradient fit `x`, and returns the values per row.
pub(super) fn check_gradient(x: &Layout, weight: &Layout, dy: &Layout) -> Result<usize> {
    let (shape, n) = (x.shape(), weight.shape().elem_count());
    if shape.dims().last() != Some(&n) || dy.shape() != shape {
        let dy = dy.shape();
        candle_core::bail!(
            "rms-norm backward: shapes do not match: x {shape:?}, {n} weights, gradient {dy:?}"
        );
    }
    Ok(n)
}

/// `1/√(mean(x²) + ε)`.
struct Inverse<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Vectorised for Inverse<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> f32 {
        let n = self.x.len() as f32;
        1.0 / (sum_of_products::<A>(self.x, self.x) / n + self.eps).sqrt()
    }
}

struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    dy: &'a [f32],
    inverse: f32,
    dx: &'a mut [f32],
}

impl Vectorised for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let inputs = self.weight.iter().zip(self.dy);
        for (dx, (weight, dy)) in self.dx.iter_mut().zip(inputs) {
            *dx = weight * dy;
        }
        let mean = sum_of_products::<A>(self.dx, self.x) / self.x.len() as f32;
        let back = mean * self.inverse * self.inverse;
        for (dx, x) in self.dx.iter_mut().zip(self.x) {
            *dx = self.inverse * (*dx - x * back);
        }
    }
}

#[inline(always)]
fn sum_of_products<A: Arithmetic>(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    let mut sums = [0f32; LANES];
    for (a, b) in a.zip(b) {
        for l in 0..LANES {
            sums[l] = A::mul_add(a[l], b[l], sums[l]);
        }
    }
    sum_lanes(sums) + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn equals_autograd_through_the_definition() {
        for n in [6, 16, 70] {
            let random = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
            let (x, weight, dy) = (random(&[3, 5, n]), random(&[n]), random(&[3, 5, n]));
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let (xv, wv) = (
                Var::from_tensor(&wide(&x)),
                Var::from_tensor(&wide(&weight)),
            );
            let (xv, wv) = (xv.unwrap(), wv.unwrap());
            let mean = xv.sqr().unwrap().mean_keepdim(2).unwrap();
            let root = (mean + 1e-5).unwrap().sqrt().unwrap();
            let y = xv.broadcast_div(&root).unwrap().broadcast_mul(&wv).unwrap();
            let forward = y.detach();
            let loss = (y * wide(&dy)).unwrap().sum_all().unwrap();
            let store = loss.backward().unwrap();
            let close = |got: Tensor, want: &Tensor| {
                let difference = (wide(&got) - want).unwrap().abs().unwrap();
                let worst: f64 = difference.max_all().unwrap().to_scalar().unwrap();
                assert!(worst < 2e-5, "{worst}");
            };
            close(rms_norm(&x, &weight, 1e-5).unwrap(), &forward);
            let dx = rms_norm_backward(&x, &weight, &dy, 1e-5).unwrap();
            close(dx, store.get(&xv).unwrap());
            let dw = rms_norm_weight_gradient(&x, &dy, 1e-5).unwrap();
            close(dw, store.get(&wv).unwrap());
        }
    }
}
