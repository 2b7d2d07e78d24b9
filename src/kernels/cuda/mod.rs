//! The door to the CUDA side of the operations.
//!
//! Everything outside this folder calls the items listed below and never asks for the feature. With
//! feature `cuda` they are those of [`present`]; without it they are those of `absent`, a twin with
//! the same signatures in which what would live on a GPU has no values and every call is an error.
//!
//! An operation that is a candle op calls one function of the door from its `cuda_fwd`, with its
//! tensors as [`Input`] and [`InOut`]. The other operations (several results, results on the host,
//! a whole list of tensors) call one function with their tensors if they are on a GPU. Either way
//! that function checks the shapes by the operation's own `check`, so every function here is safe.

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
// What operations keep on a GPU, between operations or between steps.
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
