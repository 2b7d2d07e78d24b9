//! Optimizers: AdamW and RMSprop.

use std::fmt;
use std::str::FromStr;

use candle_core::{Result, Tensor};
use serde::Serialize;

use crate::kernels::training::optimizer::{Power, Step, update_mean};

/// Optimizer algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Loshchilov and Hutter, arXiv 1711.05101, with β = (0.9, 0.999).
    AdamW,
    /// PyTorch's RMSprop with α = 0.99 and no momentum, as used by the authors of LoTA, but with
    /// the weight decay of AdamW.
    RmsProp,
}

impl FromStr for OptimizerKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "adamw" => Ok(Self::AdamW),
            "rmsprop" => Ok(Self::RmsProp),
            _ => Err(format!(
                "{text:?} is not an optimizer: expected adamw or rmsprop"
            )),
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdamW => "adamw",
            Self::RmsProp => "rmsprop",
        })
    }
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const ALPHA: f32 = 0.99;
const EPS: f32 = 1e-8;

/// Optimizer state of one tensor: running means of its gradients.
pub struct State {
    /// Running mean of the gradients; `None` for RMSprop.
    pub mean: Option<Tensor>,
    /// Running mean of the squared gradients.
    pub mean_square: Tensor,
}

impl State {
    /// Initial state of a tensor shaped like `values`.
    pub fn new(kind: OptimizerKind, values: &Tensor) -> Result<Self> {
        let mean = match kind {
            OptimizerKind::AdamW => Some(values.zeros_like()?),
            OptimizerKind::RmsProp => None,
        };
        let mean_square = values.zeros_like()?;
        Ok(Self { mean, mean_square })
    }
}

/// Parameters of one optimizer step, the same for all tensors.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Number of the step, from 1.
    pub step: usize,
    pub learning_rate: f32,
    pub weight_decay: f32,
    /// Factor applied to the gradients first, for clipping.
    pub scale: f32,
}

impl Update {
    /// Updates `values` by one step against `gradient`; `decays` turns on weight decay.
    pub fn apply(
        &self,
        values: &Tensor,
        gradient: &Tensor,
        state: &State,
        decays: bool,
    ) -> Result<()> {
        let keep = if decays {
            1.0 - self.learning_rate * self.weight_decay
        } else {
            1.0
        };
        let (scale, eps) = (self.scale, EPS);
        match &state.mean {
            Some(mean) => {
                update_mean(mean, gradient, Power::Gradient, BETA1, scale)?;
                update_mean(&state.mean_square, gradient, Power::Square, BETA2, scale)?;
                // Bias correction in f64, since 1 − 0.999 loses digits in f32.
                let correction = |beta: f32| 1.0 - f64::from(beta).powf(self.step as f64);
                let step = Step {
                    rate: (f64::from(self.learning_rate) / correction(BETA1)) as f32,
                    root: correction(BETA2).sqrt().recip() as f32,
                    eps,
                    keep,
                };
                step.take(values, mean, &state.mean_square)
            }
            None => {
                update_mean(&state.mean_square, gradient, Power::Square, ALPHA, scale)?;
                let step = Step {
                    rate: self.learning_rate * scale,
                    root: 1.0,
                    eps,
                    keep,
                };
                step.take(values, gradient, &state.mean_square)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_vec1().unwrap()
    }

    /// One weight after three steps with gradients 1, 0.5 and −2.
    fn run(kind: OptimizerKind, weight_decay: f32) -> f32 {
        let w = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let state = State::new(kind, &w).unwrap();
        for (i, g) in [1f32, 0.5, -2.0].into_iter().enumerate() {
            let gradient = Tensor::new(&[g], &Device::Cpu).unwrap();
            let update = Update {
                step: i + 1,
                learning_rate: 0.1,
                weight_decay,
                scale: 1.0,
            };
            update.apply(&w, &gradient, &state, true).unwrap();
        }
        values(&w)[0]
    }

    /// The same steps by the update rule of PyTorch's AdamW.
    fn adamw(weight_decay: f64) -> f64 {
        let (mut w, mut m, mut v) = (1.0, 0.0, 0.0);
        for (i, g) in [1f64, 0.5, -2.0].into_iter().enumerate() {
            let t = i as i32 + 1;
            w *= 1.0 - 0.1 * weight_decay;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let root = (v / (1.0 - 0.999f64.powi(t))).sqrt();
            w -= 0.1 * (m / (1.0 - 0.9f64.powi(t))) / (root + 1e-8);
        }
        w
    }

    #[test]
    fn adamw_and_rmsprop_follow_their_update_rules() {
        for decay in [0.0, 0.1] {
            let want = adamw(f64::from(decay));
            assert!((f64::from(run(OptimizerKind::AdamW, decay)) - want).abs() < 1e-5);
        }
        let (mut w, mut v) = (1f64, 0f64);
        for g in [1f64, 0.5, -2.0] {
            v = 0.99 * v + 0.01 * g * g;
            w -= 0.1 * g / (v.sqrt() + 1e-8);
        }
        assert!((f64::from(run(OptimizerKind::RmsProp, 0.0)) - w).abs() < 1e-5);
    }

    #[test]
    fn biases_do_not_decay() {
        let w = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
        let state = State::new(OptimizerKind::AdamW, &w).unwrap();
        let update = Update {
            step: 1,
            learning_rate: 0.1,
            weight_decay: 0.5,
            scale: 1.0,
        };
        let zero = w.zeros_like().unwrap();
        update.apply(&w, &zero, &state, false).unwrap();
        assert_eq!(values(&w), [1.0]);
        update.apply(&w, &zero, &state, true).unwrap();
        assert!((values(&w)[0] - 0.95).abs() < 1e-6);
    }
}
