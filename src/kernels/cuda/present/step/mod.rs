//! The numbers of a step on their way to a GPU, and captured steps.

pub mod graphs;
pub mod inputs;
