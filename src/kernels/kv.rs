//! Keys and values in fixed blocks of positions.
//!
//! A layer's keys are `[blocks, kv heads, head dim, BLOCK]` (positions innermost, so that scores
//! of a block come out of whole vectors), its values `[blocks, kv heads, BLOCK, head dim]`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};

use super::cpu::element::{Element, elements_mut, rows as rows_of, with_element};
use super::step::indices::Indices;

/// Positions of one block.
pub const BLOCK: usize = 16;

/// A layer's keys and values, in blocks.
#[derive(Debug)]
pub struct KvBlocks {
    /// `[2, blocks, kv heads, head dim · BLOCK]`: the keys, then the values.
    both: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl KvBlocks {
    /// Blocks of zeros.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn zeros([blocks, heads, dim]: [usize; 3], dtype: DType, device: &Device) -> Result<Self> {
        let both = zeros((2, blocks, heads, dim * BLOCK), dtype, device)?;
        Self::new(both, dim)
    }

    /// What lies in a tensor `[2, blocks, kv heads, head dim · BLOCK]`.
    ///
    /// # Errors
    /// It is of another shape.
    pub fn new(both: Tensor, dim: usize) -> Result<Self> {
        let (_, blocks, heads, _) = both.dims4()?;
        Ok(Self {
            keys: both.get(0)?.reshape((blocks, heads, dim, BLOCK))?,
            values: both.get(1)?.reshape((blocks, heads, BLOCK, dim))?,
            both,
        })
    }

    /// `[blocks, kv heads, head dim, BLOCK]`.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// `[blocks, kv heads, BLOCK, head dim]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Stores new keys, and after them values, of rows `[rows, 2 · kv heads, head dim]` (in the activations' dtype, a
    /// view with contiguous rows too); row `r` goes to `slots[r]`, which is `block · BLOCK + offset`.
    ///
    /// # Errors
    /// They are of other heads, or a slot is not there.
    pub fn write(&self, fresh: &Tensor, slots: &Indices) -> Result<()> {
        self.both.inplace_op2(fresh, &Write { slots })
    }
}

/// Zeros that take the CPU's memory only where they are written.
fn zeros(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    // `vec![x; n]` leaves untouched pages to the system for plain numbers alone.
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
        let [_, heads, dim] = self.check(blocks_layout, fresh_layout)?;
        let (fresh, stride) = rows_of::<f32>(fresh, fresh_layout)?;
        let fresh = fresh.chunks(stride).map(|row| &row[..2 * heads * dim]);
        with_element!(blocks, T => {
            self.store(elements_mut::<T>(blocks, blocks_layout)?, fresh, heads, dim);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        blocks: &mut candle_core::CudaStorage,
        blocks_layout: &Layout,
        fresh: &candle_core::CudaStorage,
        fresh_layout: &Layout,
    ) -> Result<()> {
        use super::cuda::{Launch, View, ViewMut};
        let [rows, heads, dim] = self.check(blocks_layout, fresh_layout)?;
        let device = blocks.device.clone();
        let values = blocks_layout.shape().elem_count() / 2;
        let blocks = ViewMut::new(blocks, blocks_layout)?;
        let (fresh, stride) = View::rows(fresh, fresh_layout)?;
        let launch = Launch::new(&device, "kv_write", blocks.dtype())?
            .write(&blocks)
            .u64(values as u64)
            .read(&fresh.of(blocks.dtype())?)
            .u64(stride as u64)
            .u64(self.slots.pointer()?)
            .size(heads)?
            .size(dim)?;
        // SAFETY: kv_write's arguments; every row has a slot within the blocks (checked).
        unsafe { launch.run_rows(rows) }
    }
}

impl Write<'_> {
    /// Rows, key heads and their dim, once what is stored is known to fit.
    fn check(&self, blocks: &Layout, fresh: &Layout) -> Result<[usize; 3]> {
        let (rows, heads, dim) = fresh.shape().dims3()?;
        let (halves, count, own_heads, size) = blocks.shape().dims4()?;
        if halves != 2 || 2 * own_heads != heads || size != dim * BLOCK {
            let blocks = blocks.shape();
            candle_core::bail!("kv-write: {heads} heads of {dim} do not fit blocks {blocks:?}");
        }
        let (given, slots) = (self.slots.host(), count * BLOCK);
        if rows != given.len() || given.iter().any(|&slot| slot as usize >= slots) {
            candle_core::bail!("kv-write: {rows} rows for slots {given:?} of {slots}");
        }
        Ok([rows, own_heads, dim])
    }

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
            let of_heads = keys[at.clone()].chunks_exact_mut(size);
            for (key, fresh) in of_heads.zip(new_keys.chunks_exact(dim)) {
                for (d, fresh) in fresh.iter().enumerate() {
                    key[d * BLOCK + offset] = T::round(*fresh);
                }
            }
            let of_heads = values[at].chunks_exact_mut(size);
            for (value, fresh) in of_heads.zip(new_values.chunks_exact(dim)) {
                let value = &mut value[offset * dim..][..dim];
                for (value, fresh) in value.iter_mut().zip(fresh) {
                    *value = T::round(*fresh);
                }
            }
        }
    }
}
