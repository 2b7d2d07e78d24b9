//! Keys and values in fixed blocks of positions.
//!
//! A layer's keys are `[blocks, kv heads, head dim, BLOCK]` (positions innermost, so that scores
//! of a block come out of whole vectors), its values `[blocks, kv heads, BLOCK, head dim]`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt as _;

use super::element::{Element, elements_mut, rows as rows_of, with_element};

/// Positions of one block.
pub const BLOCK: usize = 16;

/// Zeros that take memory only where they are written.
pub fn zeros(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    // `vec![x; n]` leaves untouched pages to the system for plain numbers alone.
    if let (Device::Cpu, DType::BF16) = (device, dtype) {
        let (blocks, heads, rows, columns) = shape;
        let zeros: Vec<bf16> = vec![0u16; blocks * heads * rows * columns].reinterpret_into();
        return Tensor::from_vec(zeros, shape, device);
    }
    Tensor::zeros(shape, dtype, device)
}

/// Stores new keys and values (`[rows, kv heads, head dim]`, f32, views with contiguous rows too) of a
/// layer; row `r` goes to `slots[r]`, which is `block · BLOCK + offset`.
pub fn write(
    keys: &Tensor,
    values: &Tensor,
    new_keys: &Tensor,
    new_values: &Tensor,
    slots: &[u32],
) -> Result<()> {
    keys.inplace_op2(
        new_keys,
        &Write {
            slots,
            order: Order::Keys,
        },
    )?;
    values.inplace_op2(
        new_values,
        &Write {
            slots,
            order: Order::Values,
        },
    )
}

#[derive(Clone, Copy)]
enum Order {
    Keys,
    Values,
}

struct Write<'a> {
    slots: &'a [u32],
    order: Order,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv-write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        new: &CpuStorage,
        new_layout: &Layout,
    ) -> Result<()> {
        let (rows, heads, dim) = new_layout.shape().dims3()?;
        let (blocks, cache_heads, a, b) = cache_layout.shape().dims4()?;
        let cache_block = match self.order {
            Order::Keys => [a, b],
            Order::Values => [b, a],
        };
        if cache_heads != heads || cache_block != [dim, BLOCK] {
            let cache = cache_layout.shape();
            candle_core::bail!("kv-write: {heads} heads of {dim} do not fit a cache {cache:?}");
        }
        let slots = blocks * BLOCK;
        if rows != self.slots.len() || self.slots.iter().any(|&s| s as usize >= slots) {
            candle_core::bail!(
                "kv-write: {rows} rows for slots {:?} of {slots}",
                self.slots
            );
        }
        let (new, stride) = rows_of::<f32>(new, new_layout)?;
        let new = new.chunks(stride).map(|row| &row[..heads * dim]);
        with_element!(cache, T => {
            self.store(elements_mut::<T>(cache, cache_layout)?, new, heads, dim);
        });
        Ok(())
    }
}

impl Write<'_> {
    fn store<'a, T: Element>(
        &self,
        cache: &mut [T],
        new: impl Iterator<Item = &'a [f32]>,
        heads: usize,
        dim: usize,
    ) {
        for (row, &slot) in new.zip(self.slots) {
            let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
            for (head, values) in row.chunks_exact(dim).enumerate() {
                let size = dim * BLOCK;
                let start = (block * heads + head) * size;
                let cached = &mut cache[start..start + size];
                match self.order {
                    Order::Keys => {
                        for (d, value) in values.iter().enumerate() {
                            cached[d * BLOCK + offset] = T::round(*value);
                        }
                    }
                    Order::Values => {
                        let cached = &mut cached[offset * dim..(offset + 1) * dim];
                        for (cached, value) in cached.iter_mut().zip(values) {
                            *cached = T::round(*value);
                        }
                    }
                }
            }
        }
    }
}
