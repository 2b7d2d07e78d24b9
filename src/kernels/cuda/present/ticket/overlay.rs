//! Tickets overlaid on the rows of a step: sparse products next to the dense product.

use std::ops::Range;

use candle_core::cuda::CudaDevice;
use candle_core::{CudaStorage, DType, Result};

use super::layout::{CHUNK, DeviceTicket, DeviceWeight};
use crate::kernels::cuda::present::gemm::{Product, product};
use crate::kernels::cuda::present::launch::{Launch, THREADS};
use crate::kernels::cuda::present::step::inputs::{Plain, StagedSlice, Staging};
use crate::kernels::cuda::present::to_u32;
use crate::kernels::cuda::present::view::{NewTensor, View, ViewMut};
use crate::kernels::cuda::{InOut, Input};
use crate::kernels::ticket::overlay::{DeviceLayout, OverlayRows, Overlays};

/// Batch rows with the same ticket, or with none. `overlay.cuh` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    ticket: u64,
    first_row: u32,
    rows: u32,
    scale: f32,
    padding: u32,
}

// SAFETY: plain numbers, laid out as in `overlay.cuh`.
unsafe impl Plain for Segment {}

/// Null ticket: the rows are only rounded.
const NO_TICKET: u64 = 0;
/// Maximum rows per segment without a ticket.
const BARE_ROWS: usize = 32;
/// Batch rows per read of a nonzero; equal to `OVERLAY_ROWS` of `overlay.cuh`.
const ROWS: usize = 4;
/// Factor of expanded deltas: without it, small deltas would underflow in f16. A power of two, so
/// exact.
const EXPANDED: f32 = 1024.0;

/// Rows of a step with the same ticket.
pub struct DeviceRows<'a> {
    pub ticket: &'a DeviceTicket,
    pub first_row: usize,
    pub rows: usize,
    pub scale: f32,
}

/// Segments of a step's rows. In GPU memory: segments with a ticket, computed by sparse products,
/// and segments without one, which are only rounded. On the host: segments with so many rows that a
/// dense product with expanded deltas is cheaper; these are computed first.
pub struct DeviceSegments<'a> {
    segments: StagedSlice,
    /// Number of segments with a ticket, including empty ones for padding.
    sparse: u32,
    /// Number of segments without a ticket, including empty ones for padding.
    bare: u32,
    /// Maximum batch rows per read of a nonzero.
    at_once: usize,
    dense: Vec<DeviceRows<'a>>,
}

impl<'a> DeviceSegments<'a> {
    /// Stages the segments of a step of `rows` rows. The ranges of `overlaid` must ascend and not
    /// overlap.
    ///
    /// # Errors
    /// A ticket's layout is not on the GPU.
    pub fn new(overlaid: &[OverlayRows<'a>], rows: usize, staging: &mut Staging) -> Result<Self> {
        let overlaid = overlaid.iter().map(DeviceRows::new);
        let overlaid = overlaid.collect::<Result<Vec<_>>>()?;
        let (dense, sparse): (Vec<_>, Vec<_>) = overlaid.into_iter().partition(is_dense);
        let mut bare = Vec::new();
        let mut done = 0;
        for part in &sparse {
            push_bare(done..part.first_row, &mut bare)?;
            done = part.first_row + part.rows;
        }
        push_bare(done..rows, &mut bare)?;
        let max_rows = sparse.iter().map(|part| part.rows).max().unwrap_or(0);
        let segment = |part: &DeviceRows| {
            Segment::new(
                part.ticket.table,
                part.first_row..part.first_row + part.rows,
                part.scale,
            )
        };
        let mut segments: Vec<Segment> = sparse.iter().map(segment).collect::<Result<_>>()?;
        let counts = [pad(&mut segments)?, pad(&mut bare)?];
        segments.extend(bare);
        Ok(Self {
            segments: staging.stage(&segments),
            sparse: counts[0],
            bare: counts[1],
            at_once: max_rows.next_power_of_two().min(ROWS),
            dense,
        })
    }

    /// Numbers that the launches depend on, besides the touched weights; `None` if deltas are
    /// expanded.
    pub fn graph_key(&self) -> Option<[usize; 3]> {
        let captured = self.dense.is_empty();
        captured.then_some([self.sparse as usize, self.bare as usize, self.at_once])
    }
}

impl<'a> DeviceRows<'a> {
    fn new(overlaid: &OverlayRows<'a>) -> Result<Self> {
        match overlaid.ticket {
            DeviceLayout::Gpu(ticket) => Ok(Self {
                ticket,
                first_row: overlaid.rows.start,
                rows: overlaid.rows.len(),
                scale: overlaid.scale,
            }),
            DeviceLayout::Cpu(_) => candle_core::bail!("overlay: a ticket is not on the GPU"),
        }
    }
}

impl Segment {
    fn new(ticket: u64, rows: Range<usize>, scale: f32) -> Result<Self> {
        Ok(Self {
            ticket,
            first_row: to_u32(rows.start)?,
            rows: to_u32(rows.len())?,
            scale,
            padding: 0,
        })
    }
}

/// Appends rows without a ticket, in segments with about as much work as a segment with one.
fn push_bare(rows: Range<usize>, segments: &mut Vec<Segment>) -> Result<()> {
    for start in rows.clone().step_by(BARE_ROWS) {
        let end = rows.end.min(start + BARE_ROWS);
        segments.push(Segment::new(NO_TICKET, start..end, 0.0)?);
    }
    Ok(())
}

/// Pads with empty segments, so that graph keys rarely change. Their thread blocks exit
/// immediately.
fn pad(segments: &mut Vec<Segment>) -> Result<u32> {
    let count = match segments.len() {
        few @ ..=8 => few,
        many => many.next_multiple_of(8),
    };
    segments.resize(count, Segment::default());
    to_u32(count)
}

/// Whether a dense product with expanded deltas is cheaper than a sparse one. A rough estimate for
/// an H100, not yet measured: the sparse product computes 10¹² nonzeros times rows per second; the
/// dense one writes and reads the expanded weight at 3·10¹² bytes per second, and computes 4·10¹⁴
/// operations per second.
pub fn is_dense(part: &DeviceRows) -> bool {
    let weights = part.ticket.weights.iter().flatten();
    let size: usize = weights
        .map(|weight| weight.shape[0] * weight.shape[1])
        .sum();
    let (size, rows) = (size as f64, part.rows as f64);
    let sparse = part.ticket.nonzeros() as f64 * rows / 1e12;
    let dense = size * 4.0 / 3e12 + 2.0 * size * rows / 4e14;
    dense < sparse
}

/// [`overlay`](crate::kernels::ticket::overlay::overlay) of weight number `weight`: `y` is in f32,
/// the result in the dtype of `x`. Dense products are first added to `y` in place; then the sparse
/// products are added, and the sums are rounded into the result.
pub fn overlay(y: InOut, x: Input, overlays: &Overlays, weight: usize) -> Result<CudaStorage> {
    let shape = overlays.check(weight, y.1, x.1)?;
    let Some(segments) = &overlays.on_gpu else {
        candle_core::bail!("overlay: the rows are not on the GPU");
    };
    let (device, rows) = (&x.0.device, x.1.shape().dims2()?.0);
    let (y, x) = (ViewMut::new(y)?.of_dtype(DType::F32)?, View::new(x)?);
    for part in &segments.dense {
        if let Some(layout) = &part.ticket.weights[weight] {
            // SAFETY: the part's rows lie in x and y, and the weight has the layout's shape
            // (checked).
            unsafe { add_dense(device, part, (weight, layout), &y, x) }?;
        }
    }
    // SAFETY: the segments are of that many rows, and their tickets' weight has that shape
    // (checked).
    unsafe { add_sparse(device, segments, (weight, shape), rows, &y, x) }
}

/// `y + scale·x·Δᵀ` of the sparse segments, and `y` in all other rows, rounded to the dtype of `x`.
///
/// # Safety
/// `x`, `y` and the segments have `rows` rows, and the weight has shape `[out, inner]`.
unsafe fn add_sparse(
    device: &CudaDevice,
    segments: &DeviceSegments,
    (weight, [out, inner]): (usize, [usize; 2]),
    rows: usize,
    y: &ViewMut,
    x: View,
) -> Result<CudaStorage> {
    let mut sums = NewTensor::new(device, x.dtype(), (rows, out))?;
    let launch = Launch::new(device, "overlay", x.dtype())?;
    let row_bytes = inner * size_of::<f32>();
    // If a block takes half of the shared memory, a multiprocessor runs two.
    let room = launch.kernels.shared_memory;
    let (at_once, staged) = match room / 2 / row_bytes.max(1) {
        0 if row_bytes <= room => (1, true),
        0 => (ROWS, false),
        fitting => (fitting.min(segments.at_once), true),
    };
    // As many blocks as the GPU runs at once, divided among the segments with tickets: more would
    // only stage x more often.
    let blocks = launch.kernels.multiprocessors * 2;
    let blocks = blocks
        .div_ceil(segments.sparse.max(1) as usize)
        .min(out.div_ceil(32))
        .max(1);
    let launch = launch
        .write(&sums.write()?)
        .write(y)
        .read(&x)
        .u64(segments.segments.pointer()?)
        .size(weight)?
        .size(inner)?
        .size(out)?
        .size(at_once)?
        .u32(u32::from(staged));
    let shared_bytes = if staged { at_once * row_bytes } else { 0 };
    let grid = [to_u32(blocks)?, segments.sparse + segments.bare, 1];
    // SAFETY: overlay's arguments; the caller's promise of the shapes.
    unsafe { launch.run(grid, THREADS, shared_bytes) }?;
    Ok(sums.into_storage())
}

/// Adds the product of a part to its rows of `y`, using deltas expanded to a dense weight.
///
/// # Safety
/// The part's rows lie in `x` and `y`, and the weight has the layout's shape.
unsafe fn add_dense(
    device: &CudaDevice,
    part: &DeviceRows,
    (weight, layout): (usize, &DeviceWeight),
    y: &ViewMut,
    x: View,
) -> Result<()> {
    let [out, inner] = layout.shape;
    let mut expanded = NewTensor::zeros(device, x.dtype(), (out, inner))?;
    let launch = Launch::new(device, "overlay_expand", x.dtype())?
        .write(&expanded.write()?)
        .u64(part.ticket.table)
        .size(weight)?
        .size(inner)?
        .size(out)?
        .f32(EXPANDED);
    let blocks = to_u32(layout.nonzeros.div_ceil(CHUNK))?;
    // SAFETY: overlay_expand's arguments; a bound ticket's positions lie in its weight.
    unsafe { launch.run([blocks, 1, 1], THREADS, 0) }?;
    let operands = Product {
        // SAFETY: the caller's promise: the part's rows lie in x.
        x: unsafe { x.skip(part.first_row * inner) },
        weight: expanded.read()?,
        // SAFETY: as above, in y, which is written by one product at a time.
        y: unsafe { y.skip(part.first_row * out) },
        shape: [part.rows, inner, out],
        scale: part.scale / EXPANDED,
        keep: 1.0,
    };
    // SAFETY: the part's rows of x and y, and the weight that was just written, in their shapes.
    unsafe { product(device, &operands) }
}
