//! Attention over the blocked KV cache.

use candle_core::cuda::CudaDevice;
use candle_core::{DType, Result};

use super::device::Kernels;
use super::launch::{Launch, WARP};
use super::step::inputs::{Plain, StagedSlice, Staging};
use super::to_u32;
use super::view::{NewTensor, View};
use crate::kernels::attention::{Span, Spans, check};
use crate::kernels::cuda::{Input, Output};
use crate::kernels::kv::BLOCK;

/// Consecutive rows of one sequence. `attention.cuh` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    first_row: u32,
    rows: u32,
    first_position: u32,
    first_block: u32,
}

// SAFETY: plain numbers, laid out as in `attention.cuh`.
unsafe impl Plain for Tile {}

/// Warps per block, as in `attention.cuh`.
const WARPS: u32 = 4;

/// Positions per part, if they are split into parts.
const PART: usize = 256;
const _: () = assert!(PART.is_multiple_of(BLOCK));

/// Maximum queries per thread block.
const MAX_QUERIES: usize = 8;

/// Whether a kernel supports heads of `dim` values if `group` query heads share a KV head.
pub fn takes_heads(dim: usize, group: usize) -> bool {
    group <= MAX_QUERIES && kernel(dim, true).is_some()
}

/// Name of the kernel for heads of `dim` values, for a single query or several.
fn kernel(dim: usize, single: bool) -> Option<&'static str> {
    let by_queries = match dim {
        dim if dim <= 64 && dim.is_multiple_of(2) => ["attention_1x2", "attention_8x2"],
        dim if dim <= 128 && dim.is_multiple_of(4) => ["attention_1x4", "attention_8x4"],
        dim if dim <= 256 && dim.is_multiple_of(8) => ["attention_1x8", "attention_8x8"],
        _ => return None,
    };
    Some(by_queries[usize::from(!single)])
}

/// Sequences of a step in GPU memory: tiles of rows, and block tables.
pub struct DeviceSpans {
    tiles: StagedSlice,
    block_tables: StagedSlice,
    /// Number of tiles.
    count: u32,
    /// Query heads that share a KV head.
    group: usize,
    /// Rows of the largest tile.
    max_rows: usize,
    /// Positions of the longest sequence, including this step's; rounded up for decoding steps.
    positions: usize,
}

impl DeviceSpans {
    /// Stages the sequences for query heads in groups of `group`.
    ///
    /// # Errors
    /// There is no kernel for such groups.
    pub fn new(spans: &[Span], group: usize, staging: &mut Staging) -> Result<Self> {
        if group > MAX_QUERIES {
            candle_core::bail!(
                "attention: {group} query heads share a KV head; the GPU takes {MAX_QUERIES}"
            );
        }
        let (mut tiles, mut block_tables) = (Vec::new(), Vec::<u32>::new());
        let tile_rows = MAX_QUERIES / group.max(1);
        for span in spans {
            let first_block = to_u32(block_tables.len())?;
            for start in (0..span.rows).step_by(tile_rows) {
                tiles.push(Tile {
                    first_row: to_u32(span.first_row + start)?,
                    rows: to_u32(tile_rows.min(span.rows - start))?,
                    first_position: to_u32(span.first_position + start)?,
                    first_block,
                });
            }
            block_tables.extend(&span.blocks);
        }
        let rows = spans.iter().map(|span| span.rows).max().unwrap_or(0);
        let positions = spans.iter().map(|span| span.first_position + span.rows);
        let positions = positions.max().unwrap_or(0);
        Ok(Self {
            count: to_u32(tiles.len())?,
            tiles: staging.stage(&tiles),
            // Staged last, because the number of blocks changes from step to step.
            block_tables: staging.stage(&block_tables),
            group,
            max_rows: rows.min(tile_rows),
            positions: match rows {
                // Rounded up, so that graph keys of decoding steps rarely change. Thread blocks
                // without positions exit immediately.
                0 | 1 => positions.next_power_of_two().max(PART),
                _ => positions,
            },
        })
    }

    /// Numbers that the launches of a decoding step depend on; `None` for other steps.
    pub fn graph_key(&self) -> Option<Vec<usize>> {
        (self.max_rows == 1).then(|| vec![self.count as usize, self.positions])
    }

    /// Positions per part. If there are too few tiles to fill the GPU, the positions are split into
    /// parts; otherwise a single part has all of them, and nothing needs to be combined.
    fn positions_per_part(&self, kv_heads: usize, device: &CudaDevice) -> Result<usize> {
        let blocks = self.count as usize * kv_heads;
        let all = self.positions.next_multiple_of(BLOCK).max(BLOCK);
        let fills = blocks >= 4 * Kernels::of(device)?.multiprocessors;
        Ok(if fills { all } else { PART })
    }
}

/// [`attention`](crate::kernels::attention::attention) in the cache's dtype.
pub fn attention(
    [queries, keys, values]: [Input; 3],
    spans: &Spans,
    window: usize,
    scale: f32,
) -> Result<Output> {
    let ([rows, heads, dim], kv_heads) = check(spans, queries.1, keys.1, values.1)?;
    let Some(spans) = &spans.on_gpu else {
        candle_core::bail!("attention: the spans are not on the GPU");
    };
    let group = heads / kv_heads;
    if group != spans.group {
        candle_core::bail!(
            "attention: spans for groups of {}, not {group}",
            spans.group
        );
    }
    let Some(kernel) = kernel(dim, spans.max_rows * group <= 1) else {
        candle_core::bail!("attention: no kernel for heads of {dim}");
    };
    let device = &keys.0.device;
    let (keys, values) = (View::new(keys)?, View::new(values)?);
    let (queries, stride) = View::rows(queries)?;
    let dtype = keys.dtype();
    let (queries, values) = (queries.of_dtype(dtype)?, values.of_dtype(dtype)?);
    let mut y = NewTensor::new(device, dtype, (rows, heads, dim))?;
    let per_part = spans.positions_per_part(kv_heads, device)?;
    let parts = spans.positions.div_ceil(per_part);
    let mut partial = match parts {
        0 | 1 => None,
        parts => Some(NewTensor::new(
            device,
            DType::F32,
            rows * heads * parts * (dim + 2),
        )?),
    };
    let launch = Launch::new(device, kernel, dtype)?.write(&y.write()?);
    let launch = match &mut partial {
        Some(partial) => launch.write(&partial.write()?),
        None => launch.null(),
    };
    let launch = launch
        .read(&queries)
        .u64(stride as u64)
        .read(&keys)
        .read(&values)
        .u64(spans.tiles.pointer()?)
        .u64(spans.block_tables.pointer()?)
        .size(group)?
        .size(kv_heads)?
        .size(dim)?
        .u32(u32::try_from(window).unwrap_or(u32::MAX))
        .size(per_part)?
        .f32(scale);
    let grid = [spans.count, to_u32(kv_heads)?, to_u32(parts)?];
    // SAFETY: the kernel's arguments; the spans' rows and blocks lie in the tensors, whose shapes
    // fit each other (checked).
    unsafe { launch.run(grid, WARPS * WARP, 0) }?;
    if let Some(partial) = &partial {
        let combine = Launch::new(device, "attention_combine", dtype)?
            .write(&y.write()?)
            .read(&partial.read()?)
            .size(parts)?
            .size(dim)?;
        // SAFETY: attention_combine's arguments; the previous launch writes every part of every
        // row.
        unsafe { combine.run([to_u32(rows * heads)?, 1, 1], 64, 0) }?;
    }
    Ok(y.into_output())
}
