//! The operations of a step, one file each: a body that is compiled for each instruction set and chosen
//! at run time (see [`simd`]), behind a function over candle tensors.
//!
//! Dispatch over dtype, device and quantisation ends here: callers pass tensors and weights. A CUDA twin
//! of an operation is the `cuda_fwd` of the same candle op, and its kernel lies in `cuda/`. Activations are f32 on the
//! CPU whatever the weights are, and a product may round them on its way (see [`linear`]); on a GPU they have the
//! weights' dtype, but for the residual stream.
//!
//! On the CPU every operation computes a row of its result in one order that does not depend on the other
//! rows, so a sequence's numbers are the same alone and in company.

pub mod activation;
pub mod attention;
mod bias;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
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

/// Kernels that were launched on GPUs so far: what a step launches is the difference.
pub fn launches() -> u64 {
    #[cfg(feature = "cuda")]
    return cuda::launches();
    #[cfg(not(feature = "cuda"))]
    0
}

pub use cpu::element::Element;
pub use cpu::pool::{Pool, PoolError};
pub use training::pattern::Pattern;
