//! The numbers of a step, put where the kernels run, and captured steps.

pub mod graphs;
pub mod indices;
pub mod inputs;
