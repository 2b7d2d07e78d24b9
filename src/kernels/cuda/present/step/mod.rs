//! Staging of a step's inputs, and CUDA graphs of captured steps.

pub mod graphs;
pub mod inputs;
