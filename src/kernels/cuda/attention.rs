//! Attention over blocks of keys and values.

use candle_core::cuda::CudaDevice;
use candle_core::{CudaStorage, DType, Layout, Result};

use super::super::attention::Span;
use super::super::kv::BLOCK;
use super::device::Kernels;
use super::inputs::{Place, Plain, Staging};
use super::launch::Launch;
use super::view::{View, ViewMut, alloc};

/// `attention.cuh` has the same struct: neighbouring rows of one sequence.
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

/// As in `attention.cuh`.
const WARPS: u32 = 4;
/// Positions of a part, where there are parts.
const PART: usize = 256;

/// Queries that a kernel takes at most.
const MOST: usize = 8;

/// Whether there is a kernel for heads of that width, of which so many share a key head.
pub fn takes_heads(dim: usize, group: usize) -> bool {
    group <= MOST && kernel(dim, true).is_some()
}

/// The kernel for heads of that width, for one query or for several.
fn kernel(dim: usize, one: bool) -> Option<&'static str> {
    let by_width = match dim {
        dim if dim <= 64 && dim.is_multiple_of(2) => ["attention_1x2", "attention_8x2"],
        dim if dim <= 128 && dim.is_multiple_of(4) => ["attention_1x4", "attention_8x4"],
        dim if dim <= 256 && dim.is_multiple_of(8) => ["attention_1x8", "attention_8x8"],
        _ => return None,
    };
    Some(by_width[usize::from(!one)])
}

/// The sequences of a step as tiles of rows, and their block tables, in a GPU's memory.
pub struct DeviceSpans {
    tiles: Place,
    block_tables: Place,
    count: u32,
    /// Query heads that share a key head.
    group: usize,
    /// Rows of a tile at most.
    rows: usize,
    /// Positions that the longest sequence has, the step's among them, or more.
    positions: usize,
}

impl DeviceSpans {
    /// For query heads that come in groups of `group`; to be uploaded.
    pub fn new(spans: &[Span], group: usize, staging: &mut Staging) -> Result<Self> {
        if group > MOST {
            candle_core::bail!(
                "attention: {group} query heads share a key head; the GPU takes {MOST}"
            );
        }
        let (mut tiles, mut block_tables) = (Vec::new(), Vec::<u32>::new());
        let at_once = MOST / group.max(1);
        for span in spans {
            let first_block = super::narrow(block_tables.len())?;
            for start in (0..span.rows).step_by(at_once) {
                tiles.push(Tile {
                    first_row: super::narrow(span.first_row + start)?,
                    rows: super::narrow(at_once.min(span.rows - start))?,
                    first_position: super::narrow(span.first_position + start)?,
                    first_block,
                });
            }
            block_tables.extend(&span.blocks);
        }
        let rows = spans.iter().map(|span| span.rows).max().unwrap_or(0);
        let positions = spans
            .iter()
            .map(|span| span.first_position + span.rows)
            .max();
        let positions = positions.unwrap_or(0);
        Ok(Self {
            count: super::narrow(tiles.len())?,
            tiles: staging.place(&tiles),
            // Last: how many blocks the sequences have changes from step to step.
            block_tables: staging.place(&block_tables),
            group,
            rows: rows.min(at_once),
            positions: match rows {
                // So that decoding steps seldom differ. The parts that nobody has end at once.
                0 | 1 => positions.next_power_of_two().max(PART),
                _ => positions,
            },
        })
    }

    /// What a decoding step's launches hang on; `None` of other steps.
    pub fn form(&self) -> Option<Vec<usize>> {
        (self.rows == 1).then(|| vec![self.count as usize, self.positions])
    }
}

/// What is attended with: shapes are checked by the caller.
pub struct Attend<'a> {
    pub spans: &'a DeviceSpans,
    /// Of queries.
    pub rows: usize,
    /// Query heads that share a key head, as the spans were made for.
    pub group: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub window: usize,
    pub scale: f32,
}

impl Attend<'_> {
    /// The result `[rows, heads, dim]`, in the cache's dtype.
    ///
    /// # Errors
    /// Heads are wider than 256, or of a width that the kernels do not take.
    ///
    /// # Safety
    /// Queries are `[rows, kv_heads · group, dim]`, keys and values blocks of such heads, and the spans' rows and
    /// blocks lie in them.
    pub unsafe fn run(
        &self,
        device: &CudaDevice,
        queries: (&CudaStorage, &Layout),
        keys: View,
        values: View,
    ) -> Result<CudaStorage> {
        let (queries, stride) = View::rows(queries.0, queries.1)?;
        let dtype = keys.dtype();
        if self.group != self.spans.group {
            candle_core::bail!("attention: spans for groups of {}", self.spans.group);
        }
        let (queries, values) = (queries.of(dtype)?, values.of(dtype)?);
        let shape = (self.rows, self.kv_heads * self.spans.group, self.dim);
        let mut y = alloc(device, dtype, shape)?;
        let layout = Layout::contiguous(shape);
        let per_part = self.positions_of_a_part(device)?;
        let parts = self.spans.positions.div_ceil(per_part);
        let heads = self.rows * self.kv_heads * self.spans.group;
        let mut scratch = match parts {
            0 | 1 => None,
            parts => Some(alloc(device, DType::F32, heads * parts * (self.dim + 2))?),
        };
        let scratch_layout = Layout::contiguous(heads * parts * (self.dim + 2));
        let scratch = scratch
            .as_mut()
            .map(|scratch| ViewMut::new(scratch, &scratch_layout));
        let scratch = scratch.transpose()?;
        let to = ViewMut::new(&mut y, &layout)?;
        let one = self.spans.rows * self.spans.group <= 1;
        let Some(kernel) = kernel(self.dim, one) else {
            candle_core::bail!("attention: no kernel for heads of {}", self.dim);
        };
        let launch = Launch::new(device, kernel, dtype)?.write(&to);
        let launch = match &scratch {
            Some(scratch) => launch.write(scratch),
            None => launch.null(),
        };
        let launch = launch
            .read(&queries)
            .u64(stride as u64)
            .read(&keys)
            .read(&values)
            .u64(self.spans.tiles.pointer()?)
            .u64(self.spans.block_tables.pointer()?)
            .u32(super::narrow(self.spans.group)?)
            .u32(super::narrow(self.kv_heads)?)
            .u32(super::narrow(self.dim)?)
            .u32(u32::try_from(self.window).unwrap_or(u32::MAX))
            .u32(super::narrow(per_part)?)
            .f32(self.scale);
        let grid = [
            self.spans.count,
            super::narrow(self.kv_heads)?,
            super::narrow(parts)?,
        ];
        // SAFETY: the kernel's arguments; the caller's promise of what lies where.
        unsafe { launch.run(grid, WARPS * 32, 0) }?;
        if let Some(scratch) = &scratch {
            let combine = Launch::new(device, "attention_combine", dtype)?
                .write(&to)
                .write(scratch)
                .u32(super::narrow(parts)?)
                .u32(super::narrow(self.dim)?);
            // SAFETY: attention_combine's arguments; every part of every row was written by the launch before.
            unsafe { combine.run([super::narrow(heads)?, 1, 1], 64, 0) }?;
        }
        Ok(y)
    }
}

impl Attend<'_> {
    /// Positions that a block of threads attends to: a part of them where there are few tiles and the GPU would be
    /// idle otherwise, else all, without parts to be put together.
    fn positions_of_a_part(&self, device: &CudaDevice) -> Result<usize> {
        let blocks = self.spans.count as usize * self.kv_heads;
        let all = self.spans.positions.next_multiple_of(BLOCK).max(BLOCK);
        let fills = blocks >= 4 * Kernels::of(device)?.multiprocessors;
        Ok(if fills { all } else { PART })
    }
}

const _: () = assert!(PART.is_multiple_of(BLOCK));
