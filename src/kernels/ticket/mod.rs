//! Ticket kernels: sparse deltas, applied to resident weights or overlaid on the rows of a batch.

pub mod apply;
pub mod overlay;
