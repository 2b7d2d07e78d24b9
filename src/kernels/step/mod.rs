//! Per-step inputs of the kernels, staged for the device, and captured steps.

pub mod graphs;
pub mod indices;
pub mod inputs;
