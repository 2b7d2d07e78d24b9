//! Dense or quantised weight, with the operations of both.

use std::ops::Range;

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
    /// The dense tensor, for in-place writes and training.
    ///
    /// # Errors
    /// The weight is quantised.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Quantized(_) => candle_core::bail!("the weight is quantised, not dense"),
        }
    }

    /// Whether the weight is dense.
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

    /// Size of the values in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.bytes(),
        }
    }

    /// `x·Wᵀ + b`, from `[rows, in]` to `[rows, out]`. Each row's result is independent of the
    /// other rows.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::linear(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// Like [`Self::linear`], with a result in f32 on every device.
    ///
    /// # Errors
    /// Those of [`Self::linear`].
    pub fn linear_f32(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => linear::linear_f32(x, tensor, bias),
            Self::Quantized(weight) => quantized::linear(x, weight, bias),
        }
    }

    /// Rows by index, `[ids, in]`, in f32.
    ///
    /// # Errors
    /// An index is out of range.
    pub fn gather_rows(&self, ids: &Indices) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => gather_rows(tensor, ids),
            Self::Quantized(weight) => weight.gather_rows(ids.host()),
        }
    }

    /// Number of rows of a matrix, or of values of a vector.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.dims().first().copied().unwrap_or(0),
            Self::Quantized(weight) => weight.rows(),
        }
    }

    /// Number of values per row.
    pub fn row_len(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() / self.rows().max(1),
            Self::Quantized(weight) => weight.row_len(),
        }
    }

    /// Adds the values of some rows to a digest: [`Self::hash_values`] in pieces.
    ///
    /// # Errors
    /// The rows are out of range, or the values cannot be read from the device.
    pub fn hash_rows(&self, hasher: &mut Sha256, rows: Range<usize>) -> Result<()> {
        match self {
            Self::Dense(tensor) => hash_values(hasher, &tensor.narrow(0, rows.start, rows.len())?),
            Self::Quantized(weight) => {
                weight.hash_rows(hasher, rows);
                Ok(())
            }
        }
    }

    /// Adds the values, widened to f32, to a digest. Dense and quantised weights of equal values
    /// give the same digest.
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
