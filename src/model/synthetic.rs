//! Synthetic weights, for measuring a model shape without its checkpoint.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest as _, Sha256};

use super::config::ModelConfig;
use crate::ticket::Digest;

/// Generator of weights with the magnitude of trained ones. It copies runs of values from random
/// offsets of one table, which is as fast as copying memory and makes all rows differ.
pub struct Synthetic {
    table: Vec<bf16>,
}

/// Values in the table, in addition to one run.
const TABLE: usize = 1 << 20;
/// Values per run.
const RUN: usize = 1 << 10;

impl Synthetic {
    /// Fills the table.
    pub fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(0);
        // The average magnitude of freshly initialised weights.
        let value = |_| bf16::from_f32(rng.random_range(-0.035..0.035));
        Self {
            table: (0..TABLE + RUN).map(value).collect(),
        }
    }

    /// A bf16 parameter on the CPU: random values if it is a matrix, ones if it is a vector.
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

    /// A stand-in for the fingerprint: the digest of the configuration, which determines the
    /// weights.
    pub fn fingerprint(config: &ModelConfig) -> Digest {
        Digest::of(format!("made up: {config:?}").as_bytes())
    }
}
