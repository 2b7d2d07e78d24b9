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

pub mod accumulate;
pub mod activation;
pub mod attention;
mod bias;
pub mod causal;
pub mod choose;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod digest;
mod element;
pub mod gemm;
pub mod graphs;
pub mod indices;
pub mod inputs;
pub mod kv;
pub mod linear;
mod math;
pub mod optimizer;
pub mod overlay;
pub mod pages;
mod parallel;
mod pattern;
mod pool;
pub mod quantized;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod sampled;
pub mod scatter;
pub mod select;
mod simd;
pub mod weight;

/// Kernels that were launched on GPUs so far: what a step launches is the difference.
pub fn launches() -> u64 {
    #[cfg(feature = "cuda")]
    return cuda::launches();
    #[cfg(not(feature = "cuda"))]
    0
}

pub use element::Element;
pub use pattern::Pattern;
pub use pool::{Pool, PoolError};
