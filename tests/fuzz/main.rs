//! Fuzzing of every parser that reads what others wrote: mutated inputs must not panic, hang or
//! allocate out of proportion to their size.
//!
//! `costs.rs` holds the requests that once took gigabytes to what they may take.
//!
//! Each target runs for 2 s, or for as long as `TOMBOLA_FUZZ_SECONDS` says. The inputs follow from
//! the corpus in `corpus/` and from `TOMBOLA_FUZZ_SEED` (0 by default). An input that fails is
//! written to the folder for temporary files, and its path printed; put it into the corpus once the
//! fault is fixed.

mod costs;
mod counting;
mod harness;
mod mutate;
mod support;
mod targets;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;
