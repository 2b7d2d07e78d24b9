//! A base whose weights are made up: for measuring a shape without its checkpoint.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest as _, Sha256};

use super::config::ModelConfig;
use crate::ticket::Digest;

/// Weights of the size that trained ones have. They come out of one table, a run of values at a time from a random
/// place: as fast as memory is copied, and no two rows are alike.
pub struct Synthetic {
    table: Vec<bf16>,
}

/// Values of the table, and of a run.
const TABLE: usize = 1 << 20;
const RUN: usize = 1 << 10;

impl Synthetic {
    pub fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(0);
        // As far from 0 as initialised weights are on average.
        let value = |_| bf16::from_f32(rng.random_range(-0.035..0.035));
        Self {
            table: (0..TABLE + RUN).map(value).collect(),
        }
    }

    /// A parameter: random where it is a matrix, ones where it is a norm.
    pub fn parameter(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if shape.len() < 2 {
            return Tensor::ones(shape, DType::BF16, &Device::Cpu);
        }
        let seed: [u8; 32] = Sha256::digest(name).into();
        let mut rng = StdRng::from_seed(seed);
        let count = shape.iter().product();
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let (start, len) = (rng.random_range(0..TABLE), RUN.min(count - values.len()));
            values.extend_from_slice(&self.table[start..start + len]);
        }
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// What stands for the fingerprint: such weights follow from the configuration.
    pub fn fingerprint(config: &ModelConfig) -> Digest {
        Digest::of(format!("made up: {config:?}").as_bytes())
    }
}
