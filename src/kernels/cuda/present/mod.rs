//! CUDA implementations of the operations: our own kernel module (`../device/kernels.cu`), the code
//! that launches its kernels, and cuBLAS for dense products. Files have the names of their CPU
//! counterparts.
//!
//! All work goes to one stream per device, in the order of the calls, from any thread. So memory
//! freed after a launch is not reused before the launch has run, and a pointer needs to be valid
//! only during the call that launches with it. The exception are captured steps (`step::graphs`),
//! which keep their pointers while they are replayed: to the tensors in their key, to the memory of
//! the step's inputs, and to the memory of the graph itself.

mod activation;
mod attention;
mod bias;
mod device;
mod gather_rows;
mod gemm;
mod kv;
mod launch;
mod linear;
mod residual;
mod rms_norm;
mod rope;
mod sample;
mod step;
mod ticket;
mod training;
mod view;

pub use activation::{silu_mul, silu_mul_backward};
pub use attention::{DeviceSpans, attention, takes_heads};
pub use bias::bias_add;
pub use device::{free_memory, name, open};
pub use gather_rows::gather_rows;
pub use kv::kv_write;
pub use launch::launches;
pub use linear::{add_weight_gradient, linear};
pub use residual::{add_rms_norm, residual_add};
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_weight_gradient};
pub use rope::rotate;
pub use sample::sample;
pub use step::graphs::DeviceGraphs;
pub use step::inputs::{StagedSlice, Staging};
pub use ticket::apply::{DeviceSaved, apply, revert};
pub use ticket::layout::DeviceTicket;
pub use ticket::overlay::{DeviceSegments, overlay};
pub use training::accumulate::{accumulate, accumulate_rows, clear};
pub use training::attention::{causal_attention, causal_attention_backward};
pub use training::cross_entropy::{cross_entropy, nll};
pub use training::optimizer::{optimizer_step, sum_of_squares, update_mean};
pub use training::pattern::DevicePattern;
pub use training::sddmm::{add_sddmm_gradient, gather_positions, set_positions};
pub use view::download;

use candle_core::Result;

/// Whether this build has CUDA kernels.
pub const AVAILABLE: bool = true;

/// Converts a count to a kernel argument.
///
/// # Errors
/// It does not fit a `uint32_t`.
fn to_u32(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => candle_core::bail!("{n} does not fit the 32 bits of a kernel's argument"),
    }
}

#[cfg(test)]
mod tests;
