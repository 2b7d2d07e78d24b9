//! Operations of a step, one module each.
//!
//! An operation is a function over candle tensors. On the CPU its body is compiled for each
//! instruction set and picked at run time (see [`cpu::simd`]).
//!
//! Dispatch over dtype, device and quantisation ends here: callers pass tensors and weights. An
//! operation reaches the GPU only through the module [`cuda`], which exists in builds without CUDA
//! too:
//!
//! - An operation that is a candle op calls one function of the module from its `cuda_fwd`.
//! - Some operations are not candle ops: their results are on the host (losses, tokens, norms), or
//!   they have more operands than a candle op (attention with gradient, apply and revert). They
//!   first call one function of the module if their tensors are on a GPU.
//!
//! Both devices call the same shape check. Launches, and all `unsafe` code around them, are in
//! `cuda/present/`, in files named after the operations; the kernels are in `cuda/device/`.
//!
//! On the CPU, activations are f32 for weights of any dtype, though a product may round its inputs
//! (see [`linear`]). On a GPU, they have the weights' dtype, except for the residual stream, which
//! is f32.
//!
//! On the CPU, every operation computes a row of its result in the same order whatever the other
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
