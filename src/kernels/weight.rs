//! A weight, dense or quantised; nothing else distinguishes the two.

use candle_core::{Device, Result, Tensor};
use sha2::Sha256;

use super::digest::hash_values;
use super::gather_rows::gather_rows;
use super::linear;
use super::quantized::{self, QuantizedWeight};
use super::step::indices::Indices;

/// A parameter: a matrix `[out, in]`, or a vector (which is always dense).
#[derive(Clone, Debug)]
pub enum Weight {
    /// Values in the resident dtype.
    Dense(Tensor),
    /// Blocks as in the GGUF file.
    Quantized(QuantizedWeight),
}

impl Weight {
    /// The tensor, to write into or to train.
    ///
    /// # Errors
    /// The weight is quantised.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Quantized(_) => candle_core::bail!("the weight is kept quantised, not dense"),
        }
    }

    /// Whether the values are a tensor.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Device of the values.
    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            Self::Quantized(_) => &Device::Cpu,
        }
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.bytes(),
        }
    }

    /// `x·Wᵀ + b`, from `[rows, in]` to `[rows, out]`. The result of a row is independent of the
    /// others.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::linear(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// As [`Self::linear`], in f32 on any device.
    ///
    /// # Errors
    /// As there.
    pub fn linear_f32(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::linear_f32(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// Rows by index, `[ids, in]`, in f32.
    ///
    /// # Errors
    /// There is no such row.
    pub fn gather_rows(&self, ids: &Indices) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => gather_rows(tensor, ids),
            Self::Quantized(weight) => weight.gather_rows(ids.host()),
        }
    }

    /// Adds the values, widened to f32, to a digest, which is the same for dense and quantised
    /// values.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn hash_values(&self, hasher: &mut Sha256) -> Result<()> {
        match self {
            Self::Dense(tensor) => hash_values(hasher, tensor),
            Self::Quantized(weight) => {
                weight.hash_values(hasher);
                Ok(())
            }
        }
    }
}
