//! Gated activation of the MLP (SwiGLU), and its backward pass.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::cpu::element::elements;
use super::cpu::math;
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{Arithmetic, Vectorised, dispatch};
use super::cuda;

/// `silu(gate)·up`, `[rows, n]`, for `gate_up` `[rows, 2·n]`: in each row `n` gate values, then `n`
/// up values.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&SiluMul)
}

struct SiluMul;

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let n = width / 2;
        let gate_up = elements::<f32>(storage, layout)?;
        let mut y = vec![0f32; rows * n];
        let out = Scattered::new(&mut y);
        for_each_range(rows, 1, |range| {
            for row in range {
                let (gate, up) = gate_up[row * width..(row + 1) * width].split_at(n);
                // SAFETY: each row is written by one thread.
                let y = unsafe { out.slice(row * n..(row + 1) * n) };
                dispatch(Row { gate, up, y });
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, n))))
    }

    fn cuda_fwd(
        &self,
        gate_up: &CudaStorage,
        gate_up_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::silu_mul((gate_up, gate_up_layout))
    }
}

struct Row<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
}

impl Vectorised for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for ((y, gate), up) in self.y.iter_mut().zip(self.gate).zip(self.up) {
            *y = gate / (1.0 + math::exp::<A>(-gate)) * up;
        }
    }
}

/// Gradient of `gate_up` `[rows, 2·n]` from the gradient of [`silu_mul`]'s result, `[rows, n]`.
pub fn silu_mul_backward(gate_up: &Tensor, dy: &Tensor) -> Result<Tensor> {
    gate_up.apply_op2_no_bwd(dy, &SiluMulBackward)
}

struct SiluMulBackward;

impl CustomOp2 for SiluMulBackward {
    fn name(&self) -> &'static str {
        "silu-mul-backward"
    }

    fn cpu_fwd(
        &self,
        gate_up: &CpuStorage,
        layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let n = check_gradient(layout, dy_layout)?;
        let (gate_up, dy) = (
            elements::<f32>(gate_up, layout)?,
            elements::<f32>(dy, dy_layout)?,
        );
        let mut dx = vec![0f32; rows * width];
        let out = Scattered::new(&mut dx);
        for_each_range(rows, 1, |range| {
            for row in range {
                let (gate, up) = gate_up[row * width..(row + 1) * width].split_at(n);
                // SAFETY: each row is written by one thread.
                let dx = unsafe { out.slice(row * width..(row + 1) * width) };
                let (dgate, dup) = dx.split_at_mut(n);
                dispatch(RowBackward {
                    gate,
                    up,
                    dy: &dy[row * n..(row + 1) * n],
                    dgate,
                    dup,
                });
            }
        });
        Ok((CpuStorage::F32(dx), Shape::from((rows, width))))
    }

    fn cuda_fwd(
        &self,
        gate_up: &CudaStorage,
        gate_up_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::silu_mul_backward((gate_up, gate_up_layout), (dy, dy_layout))
    }
}

/// Checks that the gradient fits `gate_up`, and returns half the width of `gate_up`.
pub(super) fn check_gradient(gate_up: &Layout, dy: &Layout) -> Result<usize> {
    let (rows, width) = gate_up.shape().dims2()?;
    let n = width / 2;
    if dy.shape().dims() != [rows, n] {
        let dy = dy.shape();
        candle_core::bail!("silu-mul backward: gradient {dy:?} does not fit [{rows}, {width}]");
    }
    Ok(n)
}

struct RowBackward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    dy: &'a [f32],
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
}

impl Vectorised for RowBackward<'_> {
    type Output = ();

    /// With `σ` the logistic function of the gate: `dup = dy·gate·σ`,
    /// `dgate = dy·up·σ·(1 + gate·(1 − σ))`.
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let inputs = self.gate.iter().zip(self.up).zip(self.dy);
        let outputs = self.dgate.iter_mut().zip(self.dup);
        for ((dgate, dup), ((gate, up), dy)) in outputs.zip(inputs) {
            let logistic = 1.0 / (1.0 + math::exp::<A>(-gate));
            *dup = dy * gate * logistic;
            *dgate = dy * up * logistic * (1.0 + gate * (1.0 - logistic));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Largest difference, relative to values above 1.
    fn worst(got: &Tensor, want: &Tensor) -> f32 {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (got, want) = (values(got), values(want));
        let pairs = got.iter().zip(&want);
        let differences = pairs.map(|(got, want)| (got - want).abs() / want.abs().max(1.0));
        differences.fold(0.0, f32::max)
    }

    #[test]
    fn equals_candles_operations() {
        let x = Tensor::randn(0f32, 4., (5, 46), &Device::Cpu).unwrap();
        let gate = candle_nn::ops::silu(&x.narrow(1, 0, 23).unwrap()).unwrap();
        let want = (gate * x.narrow(1, 23, 23).unwrap()).unwrap();
        let worst = worst(&silu_mul(&x).unwrap(), &want);
        assert!(worst < 2e-6, "{worst}");
    }

    #[test]
    fn the_backward_pass_equals_candles() {
        let x = Tensor::randn(0f32, 4., (5, 46), &Device::Cpu).unwrap();
        let dy = Tensor::randn(0f32, 1., (5, 23), &Device::Cpu).unwrap();
        let variable = Var::from_tensor(&x).unwrap();
        let gate = candle_nn::ops::silu(&variable.narrow(1, 0, 23).unwrap()).unwrap();
        let y = (gate * variable.narrow(1, 23, 23).unwrap()).unwrap();
        let store = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        let got = silu_mul_backward(&x, &dy).unwrap();
        let worst = worst(&got, store.get(&variable).unwrap());
        assert!(worst < 2e-5, "{worst}");
    }
}
