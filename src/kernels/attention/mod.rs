//! Causal attention of a ragged batch over paged KV blocks, with grouped queries and a sliding
//! window.

mod tile;

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::element::{Element, elements, rows as rows_of, with_element};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{LANES, dispatch};
use super::cuda;
use super::kv::{BLOCK, KvBlocks};
use super::step::inputs::Inputs;
use tile::{Cache, Tile};

/// The rows of one sequence in a batch, and the blocks of its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Batch row of the first token.
    pub first_row: usize,
    /// Number of the sequence's tokens in the batch.
    pub rows: usize,
    /// Position of the first token in its sequence.
    pub first_position: usize,
    /// Block table of the sequence: position `p` is in `blocks[p / BLOCK]`.
    pub blocks: Vec<u32>,
}

/// The sequences of a step, on the device of the kernels.
pub struct Spans<'a> {
    host: &'a [Span],
    pub(super) on_gpu: Option<cuda::DeviceSpans>,
}

impl<'a> Spans<'a> {
    /// Adds the spans to the inputs of a step, which are uploaded together. `group` query heads
    /// share a KV head.
    ///
    /// # Errors
    /// The GPU has no kernel for `group`.
    pub fn new(host: &'a [Span], group: usize, inputs: &mut Inputs) -> Result<Self> {
        let on_gpu = match &mut inputs.on_gpu {
            Some(staging) => Some(cuda::DeviceSpans::new(host, group, staging)?),
            None => None,
        };
        Ok(Self { host, on_gpu })
    }

    /// Checks that the sequences cover `rows` rows in order, and that each position is in one of
    /// `blocks` blocks.
    pub(crate) fn check(&self, rows: usize, blocks: usize) -> Result<()> {
        let mut next = 0;
        for span in self.host {
            let positions = span.first_position + span.rows;
            let known = span.blocks.iter().all(|&b| (b as usize) < blocks);
            if span.first_row != next || span.blocks.len() * BLOCK < positions || !known {
                candle_core::bail!("attention: {span:?} does not fit {rows} rows, {blocks} blocks");
            }
            next += span.rows;
        }
        if next != rows {
            candle_core::bail!("attention: spans cover {next} rows of {rows}");
        }
        Ok(())
    }

    /// Part of the graph key of a decoding step; `None` for other steps and on the CPU.
    pub(in crate::kernels) fn graph_key(&self) -> Option<Vec<usize>> {
        self.on_gpu.as_ref()?.graph_key()
    }
}

// The scores of a block are one vector.
const _: () = assert!(BLOCK == LANES);

/// Attention `softmax(q·Kᵀ·scale)·V` of queries `[rows, heads, dim]` (rows contiguous, any row
/// stride) over the keys and values of a layer, which already include those of the batch. The row
/// at position `p` sees positions `0..=p`, or the last `window` of them.
///
/// # Errors
/// The shapes or the spans do not fit.
pub fn attention(
    queries: &Tensor,
    cached: &KvBlocks,
    spans: &Spans,
    window: Option<usize>,
    scale: f32,
) -> Result<Tensor> {
    let op = Attention {
        spans,
        window: window.unwrap_or(usize::MAX),
        scale,
    };
    queries.apply_op3_no_bwd(cached.keys(), cached.values(), &op)
}

struct Attention<'a> {
    spans: &'a Spans<'a>,
    window: usize,
    scale: f32,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ([rows, heads, dim], kv_heads) =
            check(self.spans, queries_layout, keys_layout, values_layout)?;
        let queries = rows_of::<f32>(queries, queries_layout)?;
        let mut y = vec![0f32; rows * heads * dim];
        with_element!(keys, T => {
            let cache = Cache {
                keys: elements::<T>(keys, keys_layout)?,
                values: elements::<T>(values, values_layout)?,
                kv_heads,
                dim,
            };
            self.run(queries, &cache, heads / kv_heads, &mut y);
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, heads, dim))))
    }

    fn cuda_fwd(
        &self,
        queries: &CudaStorage,
        queries_layout: &Layout,
        keys: &CudaStorage,
        keys_layout: &Layout,
        values: &CudaStorage,
        values_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [
            (queries, queries_layout),
            (keys, keys_layout),
            (values, values_layout),
        ];
        cuda::attention(inputs, self.spans, self.window, self.scale)
    }
}

/// Checks all shapes and returns the shape of the queries and the number of KV heads.
pub(super) fn check(
    spans: &Spans,
    queries: &Layout,
    keys: &Layout,
    values: &Layout,
) -> Result<([usize; 3], usize)> {
    let (rows, heads, dim) = queries.shape().dims3()?;
    let (blocks, kv_heads, key_dim, block) = keys.shape().dims4()?;
    let fits = key_dim == dim && block == BLOCK && heads.is_multiple_of(kv_heads);
    if !fits || values.shape().dims() != [blocks, kv_heads, BLOCK, dim] {
        let (keys, values) = (keys.shape(), values.shape());
        candle_core::bail!("attention: {heads} heads of {dim}, keys {keys:?}, values {values:?}");
    }
    spans.check(rows, blocks)?;
    Ok(([rows, heads, dim], kv_heads))
}

impl Attention<'_> {
    fn run<T: Element>(
        &self,
        (queries, stride): (&[f32], usize),
        cache: &Cache<T>,
        group: usize,
        y: &mut [f32],
    ) {
        let size = group * cache.dim;
        let tile_rows = (tile::MAX_QUERIES / group).max(1);
        let tiles: Vec<(&Span, Range<usize>)> = self
            .spans
            .host
            .iter()
            .flat_map(|span| {
                let starts = (0..span.rows).step_by(tile_rows);
                starts.map(move |start| (span, start..span.rows.min(start + tile_rows)))
            })
            .collect();
        let y = Scattered::new(y);
        // Heads are outermost, so that a thread stays with the keys and values of one head.
        for_each_range(tiles.len() * cache.kv_heads, 1, |range| {
            let mut scores = Vec::new();
            for task in range {
                let (kv_head, (span, rows)) = (task / tiles.len(), &tiles[task % tiles.len()]);
                let mut tile = Tile::new(cache, kv_head, &span.blocks, self.scale, &mut scores);
                for row in rows.clone() {
                    let end = span.first_position + row + 1;
                    let seen = end.saturating_sub(self.window)..end;
                    let row = span.first_row + row;
                    let queries = &queries[row * stride + kv_head * size..][..size];
                    let start = (row * cache.kv_heads + kv_head) * size;
                    // SAFETY: each pair of row and KV head is in exactly one tile, and these query
                    // heads belong to that pair alone.
                    let y = unsafe { y.slice(start..start + size) };
                    tile.push(queries, y, &seen);
                }
                dispatch(tile);
            }
        });
    }
}

#[cfg(test)]
mod tests;
