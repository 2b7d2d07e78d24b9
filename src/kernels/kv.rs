//! KV cache in blocks of a fixed number of positions.
//!
//! A layer's keys are `[blocks, kv heads, head dim, BLOCK]`, with positions innermost so that the
//! scores of a block are computed in whole vectors. Its values are
//! `[blocks, kv heads, BLOCK, head dim]`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};

use super::cpu::element::{Element, elements_mut, rows as rows_of, with_element};
use super::cuda;
use super::step::indices::Indices;

/// Positions per block.
pub const BLOCK: usize = 16;

/// KV cache of one layer.
#[derive(Debug)]
pub struct KvBlocks {
    /// `[2, blocks, kv heads, head dim · BLOCK]`: the keys, then the values.
    both: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl KvBlocks {
    /// Zeroed cache for `[blocks, kv heads, head dim]`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros([blocks, heads, dim]: [usize; 3], dtype: DType, device: &Device) -> Result<Self> {
        let both = zeros((2, blocks, heads, dim * BLOCK), dtype, device)?;
        Self::new(both, dim)
    }

    /// Cache in an existing tensor `[2, blocks, kv heads, head dim · BLOCK]`.
    ///
    /// # Errors
    /// The tensor does not have this shape.
    pub fn new(both: Tensor, dim: usize) -> Result<Self> {
        let (_, blocks, heads, _) = both.dims4()?;
        Ok(Self {
            keys: both.get(0)?.reshape((blocks, heads, dim, BLOCK))?,
            values: both.get(1)?.reshape((blocks, heads, BLOCK, dim))?,
            both,
        })
    }

    /// Keys `[blocks, kv heads, head dim, BLOCK]`.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// Values `[blocks, kv heads, BLOCK, head dim]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Writes new keys and values: row `r` of `fresh` to `slots[r] = block · BLOCK + offset`.
    /// `fresh` is `[rows, 2 · kv heads, head dim]`, in each row the keys of all heads, then the
    /// values. It is in the activations' dtype and may be a view with contiguous rows.
    ///
    /// # Errors
    /// The heads do not match the cache's, or a slot is out of range.
    pub fn write(&self, fresh: &Tensor, slots: &Indices) -> Result<()> {
        self.both.inplace_op2(fresh, &Write { slots })
    }
}

/// Zeroed tensor, which on the CPU takes physical memory only where it is written.
fn zeros(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    // `vec![x; n]` allocates zeroed pages lazily only for primitive numbers, hence u16.
    let (halves, blocks, heads, size) = shape;
    let zeros = || vec![0u16; halves * blocks * heads * size];
    match (device, dtype) {
        (Device::Cpu, DType::BF16) => {
            let zeros: Vec<bf16> = zeros().reinterpret_into();
            Tensor::from_vec(zeros, shape, device)
        }
        (Device::Cpu, DType::F16) => {
            let zeros: Vec<f16> = zeros().reinterpret_into();
            Tensor::from_vec(zeros, shape, device)
        }
        _ => Tensor::zeros(shape, dtype, device),
    }
}

struct Write<'a> {
    slots: &'a Indices<'a>,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv-write"
    }

    fn cpu_fwd(
        &self,
        blocks: &mut CpuStorage,
        blocks_layout: &Layout,
        fresh: &CpuStorage,
        fresh_layout: &Layout,
    ) -> Result<()> {
        let [_, heads, dim] = check(self.slots, blocks_layout, fresh_layout)?;
        let (fresh, stride) = rows_of::<f32>(fresh, fresh_layout)?;
        let fresh = fresh.chunks(stride).map(|row| &row[..2 * heads * dim]);
        with_element!(blocks, T => {
            self.store(elements_mut::<T>(blocks, blocks_layout)?, fresh, heads, dim);
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        blocks: &mut CudaStorage,
        blocks_layout: &Layout,
        fresh: &CudaStorage,
        fresh_layout: &Layout,
    ) -> Result<()> {
        cuda::kv_write((blocks, blocks_layout), (fresh, fresh_layout), self.slots)
    }
}

/// Checks the shapes and slots, and returns `[rows, kv heads, head dim]`.
pub(super) fn check(slots: &Indices, blocks: &Layout, fresh: &Layout) -> Result<[usize; 3]> {
    let (rows, heads, dim) = fresh.shape().dims3()?;
    let (halves, count, kv_heads, size) = blocks.shape().dims4()?;
    if halves != 2 || 2 * kv_heads != heads || size != dim * BLOCK {
        let blocks = blocks.shape();
        candle_core::bail!("kv-write: {heads} heads of {dim} do not fit KV blocks {blocks:?}");
    }
    let (given, slots) = (slots.host(), count * BLOCK);
    if rows != given.len() || given.iter().any(|&slot| slot as usize >= slots) {
        candle_core::bail!("kv-write: {rows} rows do not fit slots {given:?} ({slots} slots)");
    }
    Ok([rows, kv_heads, dim])
}

impl Write<'_> {
    fn store<'a, T: Element>(
        &self,
        blocks: &mut [T],
        fresh: impl Iterator<Item = &'a [f32]>,
        heads: usize,
        dim: usize,
    ) {
        let (keys, values) = blocks.split_at_mut(blocks.len() / 2);
        let size = dim * BLOCK;
        for (row, &slot) in fresh.zip(self.slots.host()) {
            let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
            let (new_keys, new_values) = row.split_at(heads * dim);
            let at = block * heads * size..(block + 1) * heads * size;
            let head_blocks = keys[at.clone()].chunks_exact_mut(size);
            for (key, fresh) in head_blocks.zip(new_keys.chunks_exact(dim)) {
                for (d, fresh) in fresh.iter().enumerate() {
                    key[d * BLOCK + offset] = T::round(*fresh);
                }
            }
            let head_blocks = values[at].chunks_exact_mut(size);
            for (value, fresh) in head_blocks.zip(new_values.chunks_exact(dim)) {
                let value = &mut value[offset * dim..][..dim];
                for (value, fresh) in value.iter_mut().zip(fresh) {
                    *value = T::round(*fresh);
                }
            }
        }
    }
}
