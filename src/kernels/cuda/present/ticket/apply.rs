//! Apply and revert of a ticket on resident weights: one launch each.

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::layout::{CHUNK, DeviceDeltas, DeviceTicket};
use crate::kernels::cuda::present::launch::{Launch, THREADS};
use crate::kernels::cuda::present::to_u32;
use crate::kernels::cuda::present::view::{NewTensor, View, pointer, upload, with_storage};

/// A weight with its deltas. `apply.cuh` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct AppliedWeight {
    weight: u64,
    deltas: DeviceDeltas,
    first_saved: u64,
    rows: u32,
    inner: u32,
    first_block: u32,
    blocks: u32,
}

// SAFETY: plain numbers, laid out as in `apply.cuh`.
unsafe impl DeviceRepr for AppliedWeight {}

/// Base values that an applied ticket replaced, in GPU memory.
pub struct DeviceSaved {
    values: NewTensor,
    /// Address of the ticket's table, which identifies the ticket.
    ticket: u64,
}

/// Sets `w = round(w + scale·δ)` at the ticket's positions, in weights indexed by weight number,
/// and saves the replaced values.
///
/// # Errors
/// A weight does not have the shape of its deltas, or is not on the ticket's GPU. Nothing is
/// written in that case.
pub fn apply(ticket: &DeviceTicket, weights: &[Tensor], scale: f32) -> Result<DeviceSaved> {
    let (applied, dtype) = applied_weights(ticket, weights)?;
    let device = &ticket.device;
    let table = upload(device, &applied)?;
    let mut saved = DeviceSaved {
        values: NewTensor::new(device, dtype, ticket.nonzeros())?,
        ticket: ticket.table,
    };
    let launch = Launch::new(device, "ticket_apply", dtype)?
        .u64(pointer(&table))
        .size(applied.len())?
        .write(&saved.values.write()?)
        .f32(scale);
    // SAFETY: ticket_apply's arguments; the table points to weights whose shapes were checked, and
    // the positions of a bound ticket lie within them.
    unsafe { launch.run([blocks(&applied), 1, 1], THREADS, 0) }?;
    Ok(saved)
}

/// Restores the saved values.
///
/// # Errors
/// They belong to another ticket, or the weights are not those of [`apply`]. Nothing is written in
/// that case.
pub fn revert(ticket: &DeviceTicket, weights: &[Tensor], saved: &DeviceSaved) -> Result<()> {
    if saved.ticket != ticket.table {
        candle_core::bail!("revert: the saved values belong to another ticket");
    }
    let (applied, dtype) = applied_weights(ticket, weights)?;
    let table = upload(&ticket.device, &applied)?;
    let launch = Launch::new(&ticket.device, "ticket_revert", dtype)?
        .u64(pointer(&table))
        .size(applied.len())?
        .read(&saved.values.read()?.of_dtype(dtype)?);
    // SAFETY: ticket_revert's arguments; as in apply, and each of the ticket's nonzeros has a saved
    // value.
    unsafe { launch.run([blocks(&applied), 1, 1], THREADS, 0) }
}

fn blocks(applied: &[AppliedWeight]) -> u32 {
    applied
        .last()
        .map_or(0, |weight| weight.first_block + weight.blocks)
}

/// Table of the weights that the ticket touches, and their dtype.
fn applied_weights(
    ticket: &DeviceTicket,
    weights: &[Tensor],
) -> Result<(Vec<AppliedWeight>, DType)> {
    let (mut applied, mut first_saved, mut first_block) = (Vec::new(), 0, 0);
    let mut dtype = None;
    for (number, layout) in ticket.weights.iter().enumerate() {
        let Some(layout) = layout else { continue };
        let Some(weight) = weights.get(number) else {
            candle_core::bail!(
                "apply: deltas for weight {number}, but there are {} weights",
                weights.len()
            );
        };
        if weight.dims() != layout.shape {
            candle_core::bail!("apply: deltas {:?} do not fit {weight:?}", layout.shape);
        }
        let pointer = with_storage(weight, |weight| {
            let view = View::new(weight)?;
            let view = view.of_dtype(*dtype.get_or_insert(view.dtype()))?;
            Ok(view.pointer())
        })?;
        let blocks = to_u32(layout.nonzeros.div_ceil(CHUNK))?;
        applied.push(AppliedWeight {
            weight: pointer,
            deltas: layout.deltas,
            first_saved,
            rows: to_u32(layout.shape[0])?,
            inner: to_u32(layout.shape[1])?,
            first_block,
            blocks,
        });
        first_saved += layout.nonzeros as u64;
        first_block += blocks;
    }
    let Some(dtype) = dtype else {
        candle_core::bail!("apply: the ticket has no deltas");
    };
    Ok((applied, dtype))
}
