//! In-place optimizer step of a tensor (running means of its gradient, then its values), and the
//! sum of squares for gradient clipping.

use candle_core::{CpuStorage, CudaStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use crate::kernels::cpu::element::{elements, elements_mut, values};
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch, sum_lanes};
use crate::kernels::cuda;

/// Power of the gradient in a running mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// The gradient itself.
    Gradient,
    /// The squared gradient.
    Square,
}

/// `m = β·m + (1 − β)·scale·g`, or the same with `(scale·g)²`; `scale` is the factor of gradient
/// clipping.
///
/// # Errors
/// The tensors differ in size.
pub fn update_mean(
    mean: &Tensor,
    gradient: &Tensor,
    power: Power,
    beta: f32,
    scale: f32,
) -> Result<()> {
    mean.inplace_op2(gradient, &Mean { power, beta, scale })
}

/// `w = keep·w − rate·d / (root·√v + eps)`, for a direction `d` and a mean of squares `v`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Learning rate, times any scale of the direction.
    pub rate: f32,
    /// Factor of `√v`.
    pub root: f32,
    /// Term that keeps the denominator above 0.
    pub eps: f32,
    /// Factor of the weights: 1 minus the decoupled weight decay.
    pub keep: f32,
}

impl Step {
    /// Takes the step on f32 weights, in place.
    ///
    /// # Errors
    /// The tensors differ in size.
    pub fn take(&self, weights: &Tensor, direction: &Tensor, mean_square: &Tensor) -> Result<()> {
        weights.inplace_op3(direction, mean_square, self)
    }
}

/// Sum of squares of a contiguous f32 tensor, in the same order for any number of threads.
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    if tensor.device().is_cuda() {
        return cuda::sum_of_squares(tensor);
    }
    let values = values(tensor)?;
    let mut sums = vec![0f64; values.len().div_ceil(GRAIN)];
    let out = Scattered::new(&mut sums);
    for_each_range(values.len().div_ceil(GRAIN), 1, |range| {
        for chunk in range {
            let values = &values[chunk * GRAIN..((chunk + 1) * GRAIN).min(values.len())];
            // SAFETY: each chunk belongs to one thread.
            unsafe { out.write(chunk, f64::from(dispatch(Squares(values)))) };
        }
    });
    Ok(sums.iter().sum())
}

/// Values per chunk of a sum, and minimum values per range of a thread.
const GRAIN: usize = 1 << 14;

struct Squares<'a>(&'a [f32]);

impl Vectorised for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> f32 {
        let chunks = self.0.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
        let mut sums = [0f32; LANES];
        for values in chunks {
            for l in 0..LANES {
                sums[l] = A::mul_add(values[l], values[l], sums[l]);
            }
        }
        sum_lanes(sums) + rest
    }
}

#[derive(Clone, Copy)]
struct Mean {
    power: Power,
    beta: f32,
    scale: f32,
}

impl InplaceOp2 for Mean {
    fn name(&self) -> &'static str {
        "update-mean"
    }

    fn cpu_fwd(
        &self,
        mean: &mut CpuStorage,
        mean_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        check(mean_layout, gradient_layout)?;
        let gradient = elements::<f32>(gradient, gradient_layout)?;
        let mean = elements_mut::<f32>(mean, mean_layout)?;
        let len = mean.len();
        let mean = Scattered::new(mean);
        for_each_range(len, GRAIN, |range| {
            // SAFETY: ranges do not overlap.
            let mean = unsafe { mean.slice(range.clone()) };
            let gradient = &gradient[range];
            dispatch(MeanOf {
                op: *self,
                mean,
                gradient,
            });
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        mean: &mut CudaStorage,
        mean_layout: &Layout,
        gradient: &CudaStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let Self { power, beta, scale } = *self;
        let gradient = (gradient, gradient_layout);
        cuda::update_mean((mean, mean_layout), gradient, power, beta, scale)
    }
}

struct MeanOf<'a> {
    op: Mean,
    mean: &'a mut [f32],
    gradient: &'a [f32],
}

impl Vectorised for MeanOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Mean { power, beta, scale } = self.op;
        let share = 1.0 - beta;
        for (mean, gradient) in self.mean.iter_mut().zip(self.gradient) {
            let gradient = gradient * scale;
            let new = match power {
                Power::Gradient => gradient,
                Power::Square => gradient * gradient,
            };
            *mean = A::mul_add(beta, *mean, share * new);
        }
    }
}

impl InplaceOp3 for Step {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        weights: &mut CpuStorage,
        layout: &Layout,
        direction: &CpuStorage,
        direction_layout: &Layout,
        mean_square: &CpuStorage,
        mean_square_layout: &Layout,
    ) -> Result<()> {
        check(layout, direction_layout)?;
        check(layout, mean_square_layout)?;
        let direction = elements::<f32>(direction, direction_layout)?;
        let mean_square = elements::<f32>(mean_square, mean_square_layout)?;
        let weights = elements_mut::<f32>(weights, layout)?;
        let len = weights.len();
        let weights = Scattered::new(weights);
        for_each_range(len, GRAIN, |range| {
            dispatch(StepOf {
                op: *self,
                // SAFETY: ranges do not overlap.
                weights: unsafe { weights.slice(range.clone()) },
                direction: &direction[range.clone()],
                mean_square: &mean_square[range],
            });
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        weights: &mut CudaStorage,
        weights_layout: &Layout,
        direction: &CudaStorage,
        direction_layout: &Layout,
        mean_square: &CudaStorage,
        mean_square_layout: &Layout,
    ) -> Result<()> {
        let direction = (direction, direction_layout);
        let mean_square = (mean_square, mean_square_layout);
        cuda::optimizer_step((weights, weights_layout), direction, mean_square, self)
    }
}

struct StepOf<'a> {
    op: Step,
    weights: &'a mut [f32],
    direction: &'a [f32],
    mean_square: &'a [f32],
}

impl Vectorised for StepOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Step {
            rate,
            root,
            eps,
            keep,
        } = self.op;
        let inputs = self.direction.iter().zip(self.mean_square);
        for (weight, (direction, square)) in self.weights.iter_mut().zip(inputs) {
            let size = A::mul_add(square.sqrt(), root, eps);
            *weight = keep * *weight - rate * direction / size;
        }
    }
}

/// Checks that both have the same number of values.
pub(in crate::kernels) fn check(a: &Layout, b: &Layout) -> Result<()> {
    if a.shape().elem_count() != b.shape().elem_count() {
        let (a, b) = (a.shape(), b.shape());
        candle_core::bail!("optimizer: sizes do not match: {a:?} and {b:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn vec(t: &Tensor) -> Vec<f32> {
        t.to_vec1().unwrap()
    }

    #[test]
    fn means_and_step_equal_their_formulas() {
        let n = GRAIN + 37;
        let random = || Tensor::randn(0f32, 1., n, &Device::Cpu).unwrap();
        let (w, g) = (random(), random());
        let (m, v) = (random(), random().sqr().unwrap());
        let before = [&w, &g, &m, &v].map(vec);
        update_mean(&m, &g, Power::Gradient, 0.9, 0.5).unwrap();
        update_mean(&v, &g, Power::Square, 0.99, 0.5).unwrap();
        let step = Step {
            rate: 0.1,
            root: 1.5,
            eps: 1e-3,
            keep: 0.98,
        };
        step.take(&w, &m, &v).unwrap();
        let [w, m, v] = [&w, &m, &v].map(vec);
        for i in 0..n {
            let [w0, g, m0, v0] = [0, 1, 2, 3].map(|k: usize| f64::from(before[k][i]));
            let m1 = 0.9 * m0 + 0.1 * 0.5 * g;
            let v1 = 0.99 * v0 + 0.01 * 0.25 * g * g;
            let w1 = 0.98 * w0 - 0.1 * m1 / (1.5 * v1.sqrt() + 1e-3);
            for (got, want) in [(m[i], m1), (v[i], v1), (w[i], w1)] {
                assert!(
                    (f64::from(got) - want).abs() < 1e-5 * (1.0 + want.abs()),
                    "{i}"
                );
            }
        }
    }

    #[test]
    fn the_sum_of_squares_is_independent_of_the_number_of_threads() {
        let x = Tensor::randn(0f32, 1., 5 * GRAIN + 3, &Device::Cpu).unwrap();
        let want: f64 = vec(&x).iter().map(|v| f64::from(*v).powi(2)).sum();
        let one = crate::kernels::Pool::new(1)
            .unwrap()
            .install(|| sum_of_squares(&x).unwrap());
        let three = crate::kernels::Pool::new(3)
            .unwrap()
            .install(|| sum_of_squares(&x).unwrap());
        assert_eq!(one, three);
        assert!((one - want).abs() < 1e-5 * want);
    }

    #[test]
    fn tensors_of_different_sizes_are_refused() {
        let x = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(update_mean(&x, &x.narrow(0, 0, 2).unwrap(), Power::Square, 0.9, 1.0).is_err());
    }
}
