//! Keys and values in fixed blocks of positions.
//!
//! A layer's keys are `[blocks, kv heads, head dim, BLOCK]` (positions innermost, so that scores
//! of a block come out of whole vectors), its values `[blocks, kv heads, BLOCK, head dim]`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};

use super::element::{Element, elements_mut, rows as rows_of, with_element};
use super::indices::Indices;

/// Positions of one block.
pub const BLOCK: usize = 16;

/// Zeros that take the CPU's memory only where they are written.
pub fn zeros(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    // `vec![x; n]` leaves untouched pages to the system for plain numbers alone.
    let (blocks, heads, rows, columns) = shape;
    let zeros = || vec![0u16; blocks * heads * rows * columns];
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

/// Stores new keys and values (`[rows, kv heads, head dim]`, in the activations' dtype, views with contiguous rows too) of a
/// layer; row `r` goes to `slots[r]`, which is `block · BLOCK + offset`.
pub fn write(
    keys: &Tensor,
    values: &Tensor,
    new_keys: &Tensor,
    new_values: &Tensor,
    slots: &Indices,
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
    slots: &'a Indices<'a>,
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
        let [_, heads, dim] = self.check(cache_layout, new_layout)?;
        let (new, stride) = rows_of::<f32>(new, new_layout)?;
        let new = new.chunks(stride).map(|row| &row[..heads * dim]);
        with_element!(cache, T => {
            self.store(elements_mut::<T>(cache, cache_layout)?, new, heads, dim);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        cache: &mut candle_core::CudaStorage,
        cache_layout: &Layout,
        new: &candle_core::CudaStorage,
        new_layout: &Layout,
    ) -> Result<()> {
        use super::cuda::{Launch, View, ViewMut};
        let [rows, heads, dim] = self.check(cache_layout, new_layout)?;
        let device = cache.device.clone();
        let cache = ViewMut::new(cache, cache_layout)?;
        let (new, stride) = View::rows(new, new_layout)?;
        let launch = Launch::new(&device, "kv_write", cache.dtype())?
            .write(&cache)
            .read(&new.of(cache.dtype())?)
            .u64(stride as u64)
            .u64(self.slots.pointer()?)
            .size(heads)?
            .size(dim)?
            .u32(u32::from(matches!(self.order, Order::Keys)));
        // SAFETY: kv_write's arguments; every row has a slot within the cache (checked).
        unsafe { launch.run_rows(rows) }
    }
}

impl Write<'_> {
    /// `[rows, heads, dim]` of what is stored, once it is known to fit.
    fn check(&self, cache: &Layout, new: &Layout) -> Result<[usize; 3]> {
        let (rows, heads, dim) = new.shape().dims3()?;
        let (blocks, cache_heads, a, b) = cache.shape().dims4()?;
        let cache_block = match self.order {
            Order::Keys => [a, b],
            Order::Values => [b, a],
        };
        if cache_heads != heads || cache_block != [dim, BLOCK] {
            let cache = cache.shape();
            candle_core::bail!("kv-write: {heads} heads of {dim} do not fit a cache {cache:?}");
        }
        let (given, slots) = (self.slots.host(), blocks * BLOCK);
        if rows != given.len() || given.iter().any(|&slot| slot as usize >= slots) {
            candle_core::bail!("kv-write: {rows} rows for slots {given:?} of {slots}");
        }
        Ok([rows, heads, dim])
    }

    fn store<'a, T: Element>(
        &self,
        cache: &mut [T],
        new: impl Iterator<Item = &'a [f32]>,
        heads: usize,
        dim: usize,
    ) {
        for (row, &slot) in new.zip(self.slots.host()) {
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
