//! Trainer-only operations: attention and its gradient, cross-entropy, the optimizer, gradient
//! accumulation, and the sampled weight gradient (SDDMM).

pub mod accumulate;
pub mod attention;
pub mod cross_entropy;
pub mod optimizer;
pub mod pattern;
pub mod sddmm;
