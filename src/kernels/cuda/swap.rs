//! A ticket applied to resident weights and reverted: one launch each.

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor};

use super::csr::{CHUNK, DeviceDeltas, DeviceTicket};
use super::launch::Launch;
use super::view::{View, ViewMut, alloc, pointer, upload};

/// `swap.cuh` has the same struct: one weight that is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SwapPart {
    weight: u64,
    deltas: DeviceDeltas,
    first_saved: u64,
    rows: u32,
    inner: u32,
    first_block: u32,
    blocks: u32,
}

// SAFETY: plain numbers, laid out as in `swap.cuh`.
unsafe impl DeviceRepr for SwapPart {}

/// What an applied ticket has replaced, in the GPU's memory.
pub struct DeviceSaved {
    values: CudaStorage,
    /// Where the ticket's table is, which tells it from others.
    ticket: u64,
}

/// Sets `w = round(w + scale·δ)` at the ticket's positions of the weights, by their numbers, and keeps what was
/// there.
///
/// # Errors
/// A weight has another shape than its deltas, or is not on the ticket's GPU; nothing is written then.
pub fn apply(ticket: &DeviceTicket, weights: &[Tensor], scale: f32) -> Result<DeviceSaved> {
    let (parts, dtype) = parts(ticket, weights)?;
    let device = &ticket.device;
    let table = upload(device, &parts)?;
    let mut saved = DeviceSaved {
        values: alloc(device, dtype, ticket.nonzeros())?,
        ticket: ticket.table,
    };
    let layout = Layout::contiguous(ticket.nonzeros());
    let launch = Launch::new(device, "swap_apply", dtype)?
        .u64(pointer(&table))
        .size(parts.len())?
        .write(&ViewMut::new(&mut saved.values, &layout)?)
        .f32(scale);
    // SAFETY: swap_apply's arguments; the table points to weights whose shapes were checked, which a bound
    // ticket's positions lie in.
    unsafe { launch.run([blocks(&parts), 1, 1], THREADS, 0) }?;
    Ok(saved)
}

/// Writes the saved values back.
///
/// # Errors
/// They are of another ticket, or the weights are not those of [`apply`]; nothing is written then.
pub fn revert(ticket: &DeviceTicket, weights: &[Tensor], saved: &DeviceSaved) -> Result<()> {
    if saved.ticket != ticket.table {
        candle_core::bail!("swap: values that another ticket has replaced");
    }
    let (parts, dtype) = parts(ticket, weights)?;
    let table = upload(&ticket.device, &parts)?;
    let layout = Layout::contiguous(ticket.nonzeros());
    let launch = Launch::new(&ticket.device, "swap_revert", dtype)?
        .u64(pointer(&table))
        .size(parts.len())?
        .read(&View::new(&saved.values, &layout)?.of(dtype)?);
    // SAFETY: swap_revert's arguments; as in apply, and there is a saved value for each of the ticket's nonzeros.
    unsafe { launch.run([blocks(&parts), 1, 1], THREADS, 0) }
}

fn blocks(parts: &[SwapPart]) -> u32 {
    parts
        .last()
        .map_or(0, |part| part.first_block + part.blocks)
}

const THREADS: u32 = 256;

/// The table of the weights that the ticket touches, and their dtype.
fn parts(ticket: &DeviceTicket, weights: &[Tensor]) -> Result<(Vec<SwapPart>, DType)> {
    let (mut parts, mut first_saved, mut first_block) = (Vec::new(), 0, 0);
    let mut dtype = None;
    for (number, of) in ticket.weights.iter().enumerate() {
        let Some(of) = of else { continue };
        let Some(weight) = weights.get(number) else {
            candle_core::bail!("swap: deltas for weight {number} of {}", weights.len());
        };
        let (storage, layout) = weight.storage_and_layout();
        let (Storage::Cuda(storage), true) = (&*storage, layout.shape().dims() == of.shape) else {
            candle_core::bail!("swap: deltas {:?} for a weight {weight:?}", of.shape);
        };
        let view = View::new(storage, layout)?;
        let view = view.of(*dtype.get_or_insert(view.dtype()))?;
        let blocks = super::narrow(of.nonzeros.div_ceil(CHUNK))?;
        parts.push(SwapPart {
            weight: view.pointer(),
            deltas: of.deltas,
            first_saved,
            rows: super::narrow(of.shape[0])?,
            inner: super::narrow(of.shape[1])?,
            first_block,
            blocks,
        });
        first_saved += of.nonzeros as u64;
        first_block += blocks;
    }
    let Some(dtype) = dtype else {
        candle_core::bail!("swap: a ticket without deltas");
    };
    Ok((parts, dtype))
}
