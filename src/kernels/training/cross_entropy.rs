//! Cross-entropy loss of next tokens, `−ln softmax(logits)[target]`, and its gradient, which
//! replaces the logits.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Shape, Tensor};

use crate::kernels::cpu::element::{elements_mut, values};
use crate::kernels::cpu::math;
use crate::kernels::cpu::parallel::{Scattered, for_each_range};
use crate::kernels::cpu::simd::{Arithmetic, LANES, Vectorised, dispatch, sum_lanes};
use crate::kernels::cuda;

/// Loss of each row of `logits` `[rows, vocab]`, in nats, for one target per row.
///
/// # Errors
/// The number of targets differs from the number of rows, or a target is not below `vocab`.
pub fn nll(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    if logits.device().is_cuda() {
        return cuda::nll(logits, targets);
    }
    let vocab = check(logits.shape(), targets)?;
    let logits = values(logits)?;
    let mut losses = vec![0f32; targets.len()];
    let out = Scattered::new(&mut losses);
    for_each_range(targets.len(), 1, |range| {
        for row in range {
            let logits = &logits[row * vocab..(row + 1) * vocab];
            let loss = dispatch(LogSum { logits }) - logits[targets[row] as usize];
            // SAFETY: each row belongs to one thread.
            unsafe { out.write(row, loss) };
        }
    });
    Ok(losses)
}

/// Like [`nll`], but also replaces the logits with the gradient of `weight` times the sum of the
/// losses: `weight·(softmax − one_hot(target))`.
///
/// # Errors
/// Those of [`nll`].
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weight: f32) -> Result<Vec<f32>> {
    let losses = Mutex::new(Vec::new());
    logits.inplace_op1(&CrossEntropy {
        targets,
        weight,
        losses: &losses,
    })?;
    Ok(losses.into_inner().expect("no thread panicked"))
}

/// Checks that the targets fit the logits, and returns the vocabulary size.
pub(in crate::kernels) fn check(logits: &Shape, targets: &[u32]) -> Result<usize> {
    let (rows, vocab) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|&t| t as usize >= vocab) {
        let targets = targets.len();
        candle_core::bail!("cross-entropy: {targets} targets do not fit logits [{rows}, {vocab}]");
    }
    Ok(vocab)
}

struct CrossEntropy<'a> {
    targets: &'a [u32],
    weight: f32,
    losses: &'a Mutex<Vec<f32>>,
}

impl InplaceOp1 for CrossEntropy<'_> {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let vocab = check(layout.shape(), self.targets)?;
        let rows = self.targets.len();
        let mut losses = vec![0f32; rows];
        let logits = Scattered::new(elements_mut::<f32>(logits, layout)?);
        let out = Scattered::new(&mut losses);
        for_each_range(rows, 1, |range| {
            for row in range {
                let target = self.targets[row] as usize;
                // SAFETY: each row belongs to one thread.
                let logits = unsafe { logits.slice(row * vocab..(row + 1) * vocab) };
                let log_sum = dispatch(LogSum { logits });
                // SAFETY: as above.
                unsafe { out.write(row, log_sum - logits[target]) };
                dispatch(Shares {
                    logits,
                    log_sum,
                    weight: self.weight,
                });
                logits[target] -= self.weight;
            }
        });
        *self.losses.lock().expect("no thread panicked") = losses;
        Ok(())
    }

    fn cuda_fwd(&self, logits: &mut CudaStorage, logits_layout: &Layout) -> Result<()> {
        let losses = cuda::cross_entropy((logits, logits_layout), self.targets, self.weight)?;
        *self.losses.lock().expect("no thread panicked") = losses;
        Ok(())
    }
}

/// `ln Σ e^logit`.
struct LogSum<'a> {
    logits: &'a [f32],
}

impl Vectorised for LogSum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> f32 {
        let (whole, rest) = self.logits.split_at(self.logits.len() / LANES * LANES);
        let max = rest.iter().copied().fold(math::largest(whole), f32::max);
        let mut sums = [0f32; LANES];
        for logits in whole.chunks_exact(LANES) {
            for l in 0..LANES {
                sums[l] += math::exp::<A>(logits[l] - max);
            }
        }
        let rest = rest.iter().map(|logit| math::exp::<A>(logit - max));
        max + (sum_lanes(sums) + rest.sum::<f32>()).ln()
    }
}

/// Replaces logits with `weight` times their probabilities.
struct Shares<'a> {
    logits: &'a mut [f32],
    log_sum: f32,
    weight: f32,
}

impl Vectorised for Shares<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for logit in self.logits.iter_mut() {
            *logit = self.weight * math::exp::<A>(*logit - self.log_sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    fn close(a: &Tensor, b: &Tensor) {
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        let worst: f32 = difference.to_scalar().unwrap();
        assert!(worst < 2e-6, "{worst}");
    }

    #[test]
    fn equals_candles_loss_and_gradient() {
        for vocab in [5, 16, 100] {
            let logits = Tensor::randn(0f32, 3., (7, vocab), &Device::Cpu).unwrap();
            let targets: Vec<u32> = (0..7).map(|i| i * 3 % vocab as u32).collect();
            let ids = Tensor::new(targets.as_slice(), &Device::Cpu).unwrap();
            let variable = Var::from_tensor(&logits).unwrap();
            let want = candle_nn::loss::cross_entropy(&variable, &ids).unwrap();
            let gradient = want.backward().unwrap();
            let losses = nll(&logits, &targets).unwrap();
            let mean = losses.iter().sum::<f32>() / 7.0;
            assert!((mean - want.to_scalar::<f32>().unwrap()).abs() < 1e-5);
            assert_eq!(cross_entropy(&logits, &targets, 1.0 / 7.0).unwrap(), losses);
            close(&logits, gradient.get(&variable).unwrap());
        }
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_refused() {
        let logits = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(nll(&logits, &[4]).is_err());
        assert!(cross_entropy(&logits, &[0, 0], 1.0).is_err());
    }
}
