//! The operations of a step, one file each.
//!
//! An operation is a function over candle tensors. On the CPU its body is compiled for each
//! instruction set and picked at run time (see [`cpu::simd`]).
//!
//! Dispatch over dtype, device and quantisation ends here: callers pass tensors and weights. An
//! operation reaches the GPU in one way, through the door [`cuda`], which a build without CUDA has
//! too:
//!
//! - An operation that is a candle op calls one function of the door from its `cuda_fwd`.
//! - Some operations are no candle ops, since their results are on the host (losses, tokens,
//!   norms) or they have more operands than candle's ops (attention with gradient, apply and
//!   revert). They call one function of the door first, if their tensors are on a GPU.
//!
//! The shape check of an operation is one function, which both devices call. Launches, and all
//! `unsafe` around them, are in `cuda/present/`, in files of the operations' names; the kernels are
//! in `cuda/device/`.
//!
//! Activations are f32 on the CPU for weights of any dtype, and a product may round them on the way
//! (see [`linear`]). On a GPU they have the weights' dtype, except for the residual stream, which
//! is f32.
//!
//! On the CPU every operation computes a row of its result in one order, independent of the other
//! rows, so a sequence gets the same numbers alone and in a batch.

pub mod activation;
pub mod attention;
mod bias;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod digest;
pub mod gather_rows;
pub mod kv;
pub mod linear;
pub mod quantized;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod step;
pub mod ticket;
pub mod training;
pub mod weight;

pub use cpu::pool::{Pool, PoolError};
pub use training::pattern::Pattern;

/// Number of kernels launched on GPUs so far; the difference over a step is the step's launches.
pub fn launches() -> u64 {
    cuda::launches()
}
