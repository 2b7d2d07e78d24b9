//! The gated activation of the MLP.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::element::elements;
use super::math;
use super::parallel::{Scattered, for_each_range};
use super::simd::{Arithmetic, Vectorised, dispatch};

/// `silu(gate)·up` for `gate_up` `[rows, 2·n]`, a row's `n` gate values before its `n` up values;
/// the result is `[rows, n]`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn equals_candles_own_operations() {
        let x = Tensor::randn(0f32, 4., (5, 46), &Device::Cpu).unwrap();
        let gate = candle_nn::ops::silu(&x.narrow(1, 0, 23).unwrap()).unwrap();
        let want = (gate * x.narrow(1, 23, 23).unwrap()).unwrap();
        let difference = (silu_mul(&x).unwrap() - want).unwrap().abs().unwrap();
        let worst: f32 = difference.max_all().unwrap().to_scalar().unwrap();
        assert!(worst < 2e-6, "{worst}");
    }
}
