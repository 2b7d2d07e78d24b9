//! Weights kept in the quantised blocks of a GGUF file, a few bits per weight.
//!
//! The kernels widen a few rows at a time to f32, within the cache, and multiply them by the
//! kernels for dense weights. A result therefore equals that of the same weights in f32 bit for
//! bit, and does not depend on the batch.
//!
//! candle's own product (`QMatMul`) is not used: it rounds the activations to 8 bits, rounds
//! differently for different numbers of rows, keeps a second copy of the weights that it repacks,
//! computes on its own threads, and has no vector code for Q4_1.

mod blocks;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use sha2::Sha256;

use super::bias;
use super::cpu::element::elements;
use super::cpu::parallel::for_each_range;
use super::digest::hash_elements;
use super::linear::{PackedActivations, SharedOutput};
use blocks::{Widen, widener};

/// A weight `[out, in]`: parameters `[rows, in]` concatenated along their rows. Each may be
/// quantised differently. Clones share storage.
#[derive(Clone, Debug)]
pub struct QuantizedWeight {
    parts: Vec<Arc<StoredParameter>>,
    inner: usize,
}

/// The rows of one parameter.
struct StoredParameter {
    kind: GgmlDType,
    widen: Widen,
    rows: usize,
    bytes: Vec<u8>,
}

/// Whether values of a kind are quantised in blocks, not rounded one by one.
pub fn is_quantized(kind: GgmlDType) -> bool {
    kind.block_size() > 1
}

/// Whether there is a kernel for weights of a kind.
pub fn is_supported(kind: GgmlDType) -> bool {
    widener(kind).is_some()
}

/// The quantised kinds that [`is_supported`] accepts, for messages.
pub const SUPPORTED: &str = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K";

impl QuantizedWeight {
    /// Takes a stored parameter `[rows, in]`, with row `order[i]` of the file as row `i`.
    ///
    /// # Errors
    /// The parameter is not a matrix, its kind is not supported, or `order` does not have `rows`
    /// entries below `rows`.
    pub fn new(stored: &QTensor, order: impl Iterator<Item = usize>) -> Result<Self> {
        let (rows, inner) = stored.shape().dims2()?;
        let kind = stored.dtype();
        let Some(widen) = widener(kind) else {
            candle_core::bail!("{kind:?} is not {SUPPORTED}");
        };
        let data = stored.data()?;
        let row = data.len() / rows.max(1);
        let mut bytes = Vec::with_capacity(data.len());
        for from in order {
            let Some(stored) = data.get(from * row..(from + 1) * row) else {
                candle_core::bail!("row {from} of a weight with {rows} rows");
            };
            bytes.extend_from_slice(stored);
        }
        if bytes.len() != data.len() {
            candle_core::bail!("the row order of a weight with {rows} rows has another length");
        }
        let part = StoredParameter {
            kind,
            widen,
            rows,
            bytes,
        };
        Ok(Self {
            parts: vec![Arc::new(part)],
            inner,
        })
    }

    /// Concatenates weights along their rows. The result shares their storage.
    ///
    /// # Errors
    /// `weights` is empty, or they differ in `in`.
    pub fn cat(weights: &[Self]) -> Result<Self> {
        let Some(first) = weights.first() else {
            candle_core::bail!("no weights to concatenate");
        };
        let inner = first.inner;
        if let Some(other) = weights.iter().find(|weight| weight.inner != inner) {
            candle_core::bail!(
                "weights of {inner} and {} columns cannot be concatenated",
                other.inner
            );
        }
        let parts = weights.iter().flat_map(|weight| weight.parts.iter());
        Ok(Self {
            parts: parts.cloned().collect(),
            inner,
        })
    }

    /// Number of rows (`out`).
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Number of values per row (`in`).
    pub fn row_len(&self) -> usize {
        self.inner
    }

    /// Heap bytes of the blocks.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    /// The rows with the given indices, `[ids, in]` in f32.
    ///
    /// # Errors
    /// An index is out of range.
    pub fn gather_rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, inner) = (self.rows(), self.inner);
        let mut values = vec![0f32; ids.len() * inner];
        for (&id, values) in ids.iter().zip(values.chunks_exact_mut(inner.max(1))) {
            let row = id as usize;
            if row >= rows {
                candle_core::bail!("row {row} of a weight with {rows} rows");
            }
            self.widen(row..row + 1, values);
        }
        Tensor::from_vec(values, (ids.len(), inner), &Device::Cpu)
    }

    /// Adds the values, widened to f32, to a digest: the same bytes as for the weight in f32.
    pub fn hash_values(&self, hasher: &mut Sha256) {
        self.hash_rows(hasher, 0..self.rows());
    }

    /// Adds the values of some rows, widened to f32, to a digest.
    pub fn hash_rows(&self, hasher: &mut Sha256, rows: Range<usize>) {
        self.in_tiles(rows, 32, |_, values| {
            hash_elements(hasher, values);
        });
    }

    /// Widens `rows` into `values`, row-major.
    fn widen(&self, rows: Range<usize>, values: &mut [f32]) {
        let mut first = 0;
        for part in &self.parts {
            let from = rows.start.max(first);
            let to = rows.end.min(first + part.rows);
            if from < to {
                let row = part.bytes.len() / part.rows;
                let bytes = &part.bytes[(from - first) * row..(to - first) * row];
                let place = (from - rows.start) * self.inner..(to - rows.start) * self.inner;
                (part.widen)(bytes, &mut values[place]);
            }
            first += part.rows;
        }
    }

    /// Calls `take` with the widened values of `rows`, `height` rows at a time, so that they stay
    /// in the cache.
    fn in_tiles(
        &self,
        rows: Range<usize>,
        height: usize,
        mut take: impl FnMut(Range<usize>, &[f32]),
    ) {
        let mut values = vec![0f32; height.min(rows.len()) * self.inner];
        for start in rows.clone().step_by(height) {
            let tile = start..(start + height).min(rows.end);
            let values = &mut values[..tile.len() * self.inner];
            self.widen(tile.clone(), values);
            take(tile, values);
        }
    }
}

impl fmt::Debug for StoredParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows of {:?}", self.rows, self.kind)
    }
}

/// `x·Wᵀ + b` on the CPU: bit for bit the result of [`super::linear::linear`] with the weight in
/// f32.
///
/// # Errors
/// The shapes do not fit, or `x` is not contiguous f32 on the CPU.
pub fn linear(x: &Tensor, weight: &QuantizedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.apply_op1_no_bwd(&Product(weight))?;
    if let Some(bias) = bias {
        bias::add(&y, bias)?;
    }
    Ok(y)
}

struct Product<'a>(&'a QuantizedWeight);

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "quantized-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let weight = self.0;
        let (rows, inner) = layout.shape().dims2()?;
        let out = weight.rows();
        if inner != weight.inner {
            candle_core::bail!(
                "linear: x is [{rows}, {inner}], the weight [{out}, {}]",
                weight.inner
            );
        }
        let mut y = vec![0f32; rows * out];
        product(elements::<f32>(x, layout)?, weight, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }
}

/// `y[r, o] = Σ_k x[r, k]·w[o, k]`, split among threads by weight rows.
fn product(x: &[f32], weight: &QuantizedWeight, y: &mut [f32]) {
    let out = weight.rows();
    if weight.inner == 0 {
        return;
    }
    let y = SharedOutput::new(y, out);
    let x = PackedActivations::new(x, weight.inner, out);
    for_each_range(out, x.grain(), |range| {
        weight.in_tiles(range, x.grain(), |tile, values| {
            x.times(values, weight.inner, |row, o, values| {
                // SAFETY: ranges do not overlap, and neither do the tiles of a range.
                unsafe { y.write(&tile, row, o, values) }
            });
        });
    });
}

#[cfg(test)]
mod tests;
