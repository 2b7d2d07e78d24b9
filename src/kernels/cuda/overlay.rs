//! Sparse products beside a dense one, for rows that are under different tickets.

use std::ops::Range;

use candle_core::cuda::CudaDevice;
use candle_core::{CudaStorage, DType, Layout, Result};

use super::csr::{CHUNK, DeviceTicket, OfWeight};
use super::gemm::{Product, product};
use super::inputs::{Place, Plain, Staging};
use super::launch::Launch;
use super::view::{View, ViewMut, alloc};

/// `overlay.cuh` has the same struct: batch rows under one ticket, or under none.
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

/// What rows that are only rounded are under.
const NO_TICKET: u64 = 0;
/// How many of them a segment has, at most.
const BARE_ROWS: usize = 32;
/// As in `overlay.cuh`: batch rows that share a nonzero's read.
const ROWS: usize = 4;
const THREADS: u32 = 256;
/// What expanded deltas are multiplied by, exactly: f16 has no room for the small ones as they are.
const EXPANDED: f32 = 1024.0;

/// A part of a batch as the kernels are to lay its ticket over it.
pub struct DeviceRows<'a> {
    pub ticket: &'a DeviceTicket,
    pub first_row: usize,
    pub rows: usize,
    pub scale: f32,
}

/// The rows of a step: in a GPU's memory segments of those whose products are sparse, and of all others, which are only
/// rounded; and the parts of so many rows that their deltas are better expanded, before that.
pub struct DeviceSegments<'a> {
    segments: Place,
    /// Segments under tickets, and empty ones after them.
    sparse: u32,
    /// Segments under none, and empty ones after them.
    bare: u32,
    /// Rows under a ticket that share a nonzero's read, at most.
    at_once: usize,
    dense: Vec<DeviceRows<'a>>,
}

impl<'a> DeviceSegments<'a> {
    /// Of a step of `rows` rows, of which the parts ascend and do not overlap; to be uploaded.
    pub fn new(parts: Vec<DeviceRows<'a>>, rows: usize, staging: &mut Staging) -> Result<Self> {
        let (dense, sparse): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_dense);
        let mut gaps = Vec::new();
        let mut done = 0;
        for part in &sparse {
            round(done..part.first_row, &mut gaps)?;
            done = part.first_row + part.rows;
        }
        round(done..rows, &mut gaps)?;
        let most = sparse.iter().map(|part| part.rows).max().unwrap_or(0);
        let under = |part: &DeviceRows| {
            Segment::new(
                part.ticket.table,
                part.first_row..part.first_row + part.rows,
                part.scale,
            )
        };
        let mut segments: Vec<Segment> = sparse.iter().map(under).collect::<Result<_>>()?;
        let [sparse, bare] = [padded(&mut segments)?, padded(&mut gaps)?];
        segments.extend(gaps);
        Ok(Self {
            segments: staging.place(&segments),
            sparse,
            bare,
            at_once: most.next_power_of_two().min(ROWS),
            dense,
        })
    }

    /// What launches hang on, besides the weights that are touched; `None` where deltas are expanded.
    pub fn form(&self) -> Option<[usize; 3]> {
        let captured = self.dense.is_empty();
        captured.then_some([self.sparse as usize, self.bare as usize, self.at_once])
    }
}

impl Segment {
    fn new(ticket: u64, rows: Range<usize>, scale: f32) -> Result<Self> {
        Ok(Self {
            ticket,
            first_row: super::narrow(rows.start)?,
            rows: super::narrow(rows.len())?,
            scale,
            padding: 0,
        })
    }
}

/// Rows that are only rounded: in segments of about as much work as one under a ticket has.
fn round(rows: Range<usize>, segments: &mut Vec<Segment>) -> Result<()> {
    for start in rows.clone().step_by(BARE_ROWS) {
        let end = rows.end.min(start + BARE_ROWS);
        segments.push(Segment::new(NO_TICKET, start..end, 0.0)?);
    }
    Ok(())
}

/// Appends empty segments, whose blocks end at once, so that steps seldom differ in their number.
fn padded(segments: &mut Vec<Segment>) -> Result<u32> {
    let count = match segments.len() {
        few @ ..=8 => few,
        many => many.next_multiple_of(8),
    };
    segments.resize(count, Segment::default());
    super::narrow(count)
}

/// Whether expanding the deltas for a dense product is the cheaper way, by rough numbers of an H100: 10¹² nonzeros
/// times rows a second, against writing and reading the expanded weight at 3·10¹² bytes a second and computing at
/// 4·10¹⁴ operations a second. (By estimate: not measured yet.)
pub(super) fn is_dense(part: &DeviceRows) -> bool {
    let weights = part.ticket.weights.iter().flatten();
    let size: usize = weights
        .map(|weight| weight.shape[0] * weight.shape[1])
        .sum();
    let (size, rows) = (size as f64, part.rows as f64);
    let sparse = part.ticket.nonzeros() as f64 * rows / 1e12;
    let dense = size * 4.0 / 3e12 + 2.0 * size * rows / 4e14;
    dense < sparse
}

/// `y + scale·x·Δᵀ` of one weight, by its number, in the dtype of `x` `[rows, in]`, for rows `[rows, out]` of `y` in f32,
/// to which [`overlay_dense`] has added.
///
/// # Errors
/// `y` is not in f32.
///
/// # Safety
/// The segments are of as many rows, and their tickets' weight has that shape.
pub unsafe fn overlay(
    segments: &DeviceSegments,
    weight: usize,
    [out, inner]: [usize; 2],
    (y, y_layout): (&CudaStorage, &Layout),
    (x, x_layout): (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = &x.device;
    let (y, x) = (View::new(y, y_layout)?, View::new(x, x_layout)?);
    let mut sum = alloc(device, x.dtype(), y_layout.shape().clone())?;
    let launch = Launch::new(device, "overlay", x.dtype())?;
    let row_bytes = inner * size_of::<f32>();
    // Of half of it a multiprocessor holds two blocks.
    let room = launch.kernels.shared_memory;
    let (at_once, staged) = match room / 2 / row_bytes.max(1) {
        0 if row_bytes <= room => (1, true),
        0 => (ROWS, false),
        fitting => (fitting.min(segments.at_once), true),
    };
    // As many blocks as the GPU runs at once, shared out among the tickets' segments: each stages x anew.
    let blocks = launch.kernels.multiprocessors * 2;
    let blocks = blocks
        .div_ceil(segments.sparse.max(1) as usize)
        .min(out.div_ceil(32))
        .max(1);
    let launch = launch
        .write(&ViewMut::new(
            &mut sum,
            &Layout::contiguous(y_layout.shape()),
        )?)
        .read(&y.of(DType::F32)?)
        .read(&x)
        .u64(segments.segments.pointer()?)
        .size(weight)?
        .size(inner)?
        .size(out)?
        .size(at_once)?
        .u32(u32::from(staged));
    let shared_bytes = if staged { at_once * row_bytes } else { 0 };
    let grid = [super::narrow(blocks)?, segments.sparse + segments.bare, 1];
    // SAFETY: overlay's arguments; the caller's promise of what lies where.
    unsafe { launch.run(grid, THREADS, shared_bytes) }?;
    Ok(sum)
}

/// Adds to `y` the products of the parts whose deltas are expanded, as [`overlay`] takes them.
///
/// # Errors
/// `y` is not in f32.
///
/// # Safety
/// As there.
pub unsafe fn overlay_dense(
    segments: &DeviceSegments,
    weight: usize,
    (y, y_layout): (&mut CudaStorage, &Layout),
    (x, x_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    let y = ViewMut::new(y, y_layout)?.of(DType::F32)?;
    let view = View::new(x, x_layout)?;
    for part in &segments.dense {
        if let Some(of) = &part.ticket.weights[weight] {
            // SAFETY: the caller's promise.
            unsafe { add_dense(&x.device, part, (weight, of), &y, view) }?;
        }
    }
    Ok(())
}

/// The product of a part whose deltas are expanded for it.
///
/// # Safety
/// As [`overlay`].
unsafe fn add_dense(
    device: &CudaDevice,
    part: &DeviceRows,
    (weight, of): (usize, &OfWeight),
    y: &ViewMut,
    x: View,
) -> Result<()> {
    let [out, inner] = of.shape;
    let dtype = x.dtype();
    let mut expanded = zeros(device, dtype, out * inner)?;
    let layout = Layout::contiguous((out, inner));
    let launch = Launch::new(device, "overlay_expand", dtype)?
        .write(&ViewMut::new(&mut expanded, &layout)?)
        .u64(part.ticket.table)
        .size(weight)?
        .size(inner)?
        .size(out)?
        .f32(EXPANDED);
    let blocks = super::narrow(of.nonzeros.div_ceil(CHUNK))?;
    // SAFETY: overlay_expand's arguments; a bound ticket's positions lie in its weight.
    unsafe { launch.run([blocks, 1, 1], THREADS, 0) }?;
    let rows = Product {
        // SAFETY: the caller's promise: the part's rows lie in x and y.
        x: unsafe { x.skip(part.first_row * inner) },
        weight: View::new(&expanded, &layout)?,
        // SAFETY: as above; y is written by one product at a time.
        y: unsafe { y.skip(part.first_row * out) },
        shape: [part.rows, inner, out],
        scale: part.scale / EXPANDED,
        keep: 1.0,
    };
    // SAFETY: rows of x and y, and the weight that was just written, in their shapes.
    unsafe { product(device, &rows) }
}

fn zeros(device: &CudaDevice, dtype: DType, n: usize) -> Result<CudaStorage> {
    use candle_core::backend::BackendDevice as _;
    device.zeros_impl(&n.into(), dtype)
}
