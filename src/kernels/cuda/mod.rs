//! The GPU's side of the operations: an own image of kernels (`kernels.cu`), how they are launched, and
//! cuBLAS for dense products.
//!
//! All work is issued to one stream of the device, in the order of the calls, whatever thread makes them.
//! So memory that is freed after a launch is not given to others before the launch has run, and pointers
//! need to live only as long as the call that launches with them. But a captured step (`graphs`) keeps its pointers for
//! as long as it is replayed: they are to what its form stands for, to the inputs' memory, and to the graph's own.

mod attention;
mod csr;
mod device;
mod gemm;
mod graphs;
mod inputs;
mod launch;
mod overlay;
mod sample;
mod swap;
pub(super) mod training;
mod view;

pub use attention::{Attend, DeviceSpans, takes_heads};
pub use csr::DeviceTicket;
pub use device::{free_memory, name, open};
pub use gemm::{Product, add_gradient, product};
pub use graphs::DeviceGraphs;
pub use inputs::{Place, Staging};
pub use launch::{Launch, launches};
pub use overlay::{DeviceRows, DeviceSegments, overlay, overlay_dense};
pub use sample::sample;
pub use swap::{DeviceSaved, apply, revert};
pub(in crate::kernels) use view::pointer;
pub use view::{View, ViewMut, alloc, download, upload};

use candle_core::Result;

/// A number as a kernel takes it.
fn narrow(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => candle_core::bail!("{n} is too many for a kernel"),
    }
}

#[cfg(test)]
mod tests;
