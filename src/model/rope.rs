//! The table of angles for rotary position embedding (RoPE).

use candle_core::{Device, Result, Tensor};

use super::config::{ModelConfig, RopeScaling};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::step::indices::Indices;

/// Cosines and sines of the angles of each position, both `[positions, head_dim / 2]` in f32.
#[derive(Debug)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    /// Computes the table for `positions` positions.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(config: &ModelConfig, positions: usize, device: &Device) -> Result<Self> {
        let frequencies = frequencies(config);
        let angle = |p: usize| frequencies.iter().map(move |f| p as f32 * f);
        let angles: Vec<f32> = (0..positions).flat_map(angle).collect();
        // Computed on the CPU, so that the cosines are the same on all devices.
        let angles = Tensor::from_vec(angles, (positions, frequencies.len()), &Device::Cpu)?;
        Ok(Self {
            cos: angles.cos()?.to_device(device)?,
            sin: angles.sin()?.to_device(device)?,
        })
    }

    /// Bytes of both tables per position.
    pub fn bytes_per_position(config: &ModelConfig) -> usize {
        config.head_dim * size_of::<f32>()
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Cosines and sines at the positions of a batch, both `[rows, head_dim / 2]`.
    ///
    /// # Errors
    /// A position is out of range.
    pub fn at(&self, positions: &Indices) -> Result<(Tensor, Tensor)> {
        Ok((
            gather_rows(&self.cos, positions)?,
            gather_rows(&self.sin, positions)?,
        ))
    }
}

/// Rotation frequency of each pair of a head's values, in radians per position:
/// `theta^(−2i / head_dim)`, scaled.
fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let dim = config.head_dim;
    let frequency = |i: usize| 1.0 / config.rope_theta.powf((2 * i) as f32 / dim as f32);
    let plain = (0..dim / 2).map(frequency);
    match &config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, d)| f / d).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: context,
        } => {
            let context = *context as f32;
            let scale = |frequency: f32| {
                // As in `_compute_llama3_parameters` of transformers.
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < context / high {
                    frequency
                } else if wavelength > context / low {
                    frequency / factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            plain.map(scale).collect()
        }
    }
}
