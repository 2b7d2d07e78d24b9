//! The engine as its callers see it: the same tokens in any company, tickets that do not touch each
//! other, cancellation, preemption, and an error rather than a wrong answer.

mod batches;
mod modes;
mod scoring;
mod sequences;
