//! Operations of the trainer, all in f32.

pub mod accumulate;
pub mod attention;
pub mod cross_entropy;
pub mod optimizer;
pub mod pattern;
pub mod sddmm;
