//! Tombola keeps one dense base model resident and serves any number of **LoTA tickets** (sparse
//! weight deltas, arXiv 2406.16797), swapped per request.
//!
//! `docs/design.md` walks a completion, an upload, a training run and a shutdown through the files;
//! this page lists the layers.
//!
//! # Layers
//!
//! A folder is a layer, and arrows point down only: a module may use those below it, never those
//! above. `tests/layering/layers.rs` holds the exact table.
//!
//! | layer | what lives there |
//! |---|---|
//! | [`cli`] | one file or folder per subcommand: parse, validate, call the library |
//! | [`server`] | HTTP only: wire types, routes, SSE, the table of errors |
//! | [`device_bench`] | benchmark of a device on a synthetic base |
//! | [`loadgen`] | load client of any OpenAI-compatible server |
//! | [`grammar`] | grammars and JSON schemas, compiled to the engine's token masks |
//! | [`eval`] | loss and greedy answers over a data file, through the engine |
//! | [`engine`] | the one thread that owns the model: scheduler, policy, runner, costs, sampler |
//! | [`registry`] | this server's tickets: names, generations, leases, memory budget, folder |
//! | [`train`] | the offline trainer: calibrate, mask, adapt, extract, report |
//! | [`model`] | the dense base: loader, weights, decoder, KV; tickets applied or overlaid |
//! | [`kernels`] | one file or folder per operation, and nearly all `unsafe` |
//! | [`data`] | training and evaluation rows, encoded as the server encodes requests |
//! | [`chat`] | tools, their calls and reasoning: rendered, parsed back, as grammars |
//! | [`text`] | tokenizer, chat template, incremental decoding, stop strings |
//! | [`ticket`] | what a ticket is: format, validation, binding to a base, top-k, merge, import |
//! | [`access`] | who may do what: keys, scopes, tenants and their limits |
//! | [`metrics`] | every Prometheus series, named once |
//!
//! In [`kernels`], the operations of serving stand at the top. `cpu/` is the plumbing of the CPU
//! (SIMD, thread pool, GEMM), `step/` holds what a step uploads and captures, `ticket/` applies and
//! overlays, `training/` serves the trainer, and `cuda/` is the GPU behind one module.
//!
//! # One completion
//!
//! `server::openai` → `text` (render, encode) → [`registry::Registry::lease`] →
//! [`engine::EngineHandle::submit`] ⇒ *one channel in* ⇒ `policy` → `scheduler` → `runner` →
//! `model::decoder` and `kernels` ⇒ *one channel out* ⇒ `text` (decode) → `server::sse`. The engine
//! is an OS thread that owns scheduler, runner and weights outright, so there is no lock around the
//! model. Dropping the output stream cancels the sequence; its place in the queue is free as soon
//! as the engine is done with it.
//!
//! # One upload
//!
//! `server::tickets` streams to a temporary file → [`registry::Registry::publish`]: `ticket`
//! validates it and binds it to the base's manifest, a rename puts it into the ticket folder, and
//! its name points at the new generation. The engine is not told: running requests keep their
//! lease.
//!
//! # One training run
//!
//! `cli::train` → `model` + `data` → [`train::train`]: calibrate (a full fine-tune, with gradients
//! and optimizer state of all weights) → mask → adapt (with those of the ticket's positions only) →
//! `ticket` (write) → read back, applied to a fresh base, evaluated.
//!
//! # Invariants
//!
//! Tests hold each of them (`tests/layering/` reads the `use` lines):
//!
//! - `ticket` does not depend on tokio, `model` or HTTP; the `scheduler`, `policy` and `costs` of
//!   `engine`, and all of `server`, `eval`, `registry` and `data`, do not depend on candle;
//!   `engine` depends on neither `text` nor llguidance; `train` depends on neither `engine` nor
//!   `server`.
//! - Code decides by dtype, device or quantisation only in `kernels` and `model::device`.
//! - The base is bit-identical to what was loaded after any history of swaps.
//! - On the CPU, a row's result does not depend on its neighbours, its chunks or its place in the
//!   batch. Applied and overlaid tickets give results that differ by rounding. On a GPU, products
//!   are cuBLAS's, which chooses its algorithm by the number of rows.

pub mod access;
pub mod chat;
pub mod cli;
pub mod data;
pub mod device_bench;
pub mod engine;
pub mod eval;
pub mod grammar;
pub mod kernels;
pub mod loadgen;
pub mod metrics;
pub mod model;
pub mod registry;
pub mod server;
pub mod text;
pub mod ticket;
pub mod train;
