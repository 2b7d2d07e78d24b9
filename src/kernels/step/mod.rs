//! Inputs of a step, staged and uploaded for its kernels, and CUDA graphs of captured steps.

pub mod graphs;
pub mod indices;
pub mod inputs;
