//! Interface to the CUDA implementations of the operations.
//!
//! Code outside this folder uses the items listed below, and contains no `cfg(feature)`. With
//! feature `cuda` the items come from [`present`]. Without it they come from `absent`, which has
//! the same signatures: its types for GPU data have no values, and its functions return errors.
//!
//! An operation that is a candle op calls one function of this module from its `cuda_fwd`, with its
//! tensors as [`Input`] and [`InOut`]. Other operations (with several results, results on the host,
//! or a list of tensors) call one function with their tensors if these are on a GPU. Each function
//! checks the shapes with the operation's `check`, so all of them are safe.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod present;

#[cfg(not(feature = "cuda"))]
use absent as twin;
#[cfg(feature = "cuda")]
use present as twin;

use candle_core::{CudaStorage, Layout, Shape};

/// A tensor that a kernel reads, as candle hands it to an operation.
pub type Input<'a> = (&'a CudaStorage, &'a Layout);

/// A tensor that a kernel writes, and may read before.
pub type InOut<'a> = (&'a mut CudaStorage, &'a Layout);

/// A new tensor that a kernel has written.
pub type Output = (CudaStorage, Shape);

// The devices.
pub use twin::{AVAILABLE, free_memory, launches, name, open};
// State on a GPU that outlives an operation.
pub use twin::{
    DeviceGraphs, DevicePattern, DeviceSaved, DeviceSegments, DeviceSpans, DeviceTicket,
    StagedSlice, Staging,
};
// The operations.
pub use twin::{
    add_rms_norm, attention, bias_add, download, gather_rows, kv_write, linear, residual_add,
    rms_norm, rotate, sample, silu_mul, takes_heads,
};
// Tickets.
pub use twin::{apply, overlay, revert};
// Training.
pub use twin::{
    accumulate, accumulate_rows, add_sddmm_gradient, add_weight_gradient, causal_attention,
    causal_attention_backward, clear, cross_entropy, gather_positions, nll, optimizer_step,
    rms_norm_backward, rms_norm_weight_gradient, set_positions, silu_mul_backward, sum_of_squares,
    update_mean,
};
