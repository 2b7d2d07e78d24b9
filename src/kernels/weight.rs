//! A weight however it is kept: the one place that asks how.

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
    Dense(Tensor),
    Quantized(QuantizedWeight),
}

impl Weight {
    /// The tensor, to write into or to train.
    ///
    /// # Errors
    /// If the weight is kept quantised.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Quantized(_) => candle_core::bail!("a weight is kept quantised, not dense"),
        }
    }

    /// Whether the weight is a dense tensor.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Device of the weight; quantised weights are on the CPU.
    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            Self::Quantized(_) => &Device::Cpu,
        }
    }

    /// Bytes that the values take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.bytes(),
        }
    }

    /// `x·Wᵀ + b`: `[rows, in]` → `[rows, out]`; a row's result does not depend on the others.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::linear(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// As [`Self::linear`], in f32 on any device.
    pub fn wide(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::wide(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// Rows by number, `[ids, in]`, in f32.
    pub fn gather_rows(&self, ids: &Indices) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => gather_rows(tensor, ids),
            Self::Quantized(weight) => weight.gather_rows(ids.host()),
        }
    }

    /// Adds the values, widened to f32, to a digest: the same however they are kept.
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
