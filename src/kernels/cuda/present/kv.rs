//! Writes to the KV cache.

use candle_core::Result;

use super::launch::Launch;
use super::view::{View, ViewMut};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::kv::check;
use crate::kernels::step::indices::Indices;

/// [`KvBlocks::write`](crate::kernels::kv::KvBlocks::write); all in the blocks' dtype.
pub fn kv_write(blocks: InOut, fresh: Input, slots: &Indices) -> Result<()> {
    let [rows, heads, dim] = check(slots, blocks.1, fresh.1)?;
    let device = blocks.0.device.clone();
    let half = blocks.1.shape().elem_count() / 2;
    let blocks = ViewMut::new(blocks)?;
    let (fresh, stride) = View::rows(fresh)?;
    let launch = Launch::new(&device, "kv_write", blocks.dtype())?
        .write(&blocks)
        .u64(half as u64)
        .read(&fresh.of_dtype(blocks.dtype())?)
        .u64(stride as u64)
        .u64(slots.on_gpu()?.pointer()?)
        .size(heads)?
        .size(dim)?;
    // SAFETY: kv_write's arguments; every row has a slot within the blocks (checked).
    unsafe { launch.run_rows(rows) }
}
