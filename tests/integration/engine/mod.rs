//! The engine through its public interface: tokens independent of the batch, isolated tickets,
//! cancellation, preemption, and errors instead of wrong answers.

mod batches;
mod compositions;
mod constrained;
mod failures;
mod fairness;
mod modes;
mod pooling;
mod prefix;
mod scoring;
mod sequences;
