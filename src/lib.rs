//! Tombola keeps one dense base model resident and serves any number of **LoTA tickets** (sparse
//! weight deltas, arXiv 2406.16797), hot-swapped per request.
//!
//! # The map of the house
//!
//! A folder is a layer, and arrows point down only: a module may use those below it, never those
//! above.
//!
//! | layer | what lives there |
//! |---|---|
//! | [`cli`] | one file per subcommand: parse, validate, call the library |
//! | [`server`] | HTTP only: wire types, routes, SSE, the error table |
//! | [`device_bench`] | steps, swaps and overlays of a synthetic base, beside what the memory bandwidth allows |
//! | [`loadgen`] | a load client of any OpenAI-style server |
//! | [`eval`] | loss and greedy answers over a data file, through the engine |
//! | [`engine`] | the one thread that owns the model: scheduler and policy (pure data), runner (applies tickets or overlays them), measured costs, sampler |
//! | [`registry`] | the tickets that are served: aliases, generations, leases of loaded tickets, the folder on disk |
//! | [`train`] | the offline trainer: calibrate, mask, adapt, report |
//! | [`model`] | the dense base: source, loader, weights, decoder, KV blocks, tickets applied, reverted or overlaid |
//! | [`kernels`] | one file an operation; the only home of `unsafe` besides the map of a file |
//! | [`data`] | rows to learn from and to be measured on: read from a file, encoded as served |
//! | [`text`] | tokenizer, chat template, incremental decoding, stop strings |
//! | [`ticket`] | what a ticket is: the file, its validation, the base manifest, positions kept, imports |
//! | [`metrics`] | every Prometheus series, named once |
//!
//! # One completion
//!
//! `server::openai` → `text` (render, encode) → `registry.lease` → [`engine::EngineHandle::submit`]
//! ⇒ *one channel in* ⇒ `policy` → `scheduler` → `runner` → `model::decoder` (+ `kernels`) ⇒ *one channel
//! out* ⇒ `server::sse` → `text` (decode). The engine is an OS thread that owns scheduler, runner
//! and weights outright, so there is no lock around the model. Dropping the output stream is the
//! cancellation; the admission permit lives inside that stream.
//!
//! # One upload
//!
//! `server::tickets` streams to a temporary file → `ticket::format` validates all → checked
//! against the base manifest → `registry.publish` (rename, alias swap) → 201. The engine is not
//! told: running requests keep their lease.
//!
//! # One training run
//!
//! `cli::train` → `model` + `data` → [`train::train`]: calibrate → mask → adapt, with the ticket's
//! positions alone in gradients and optimizer state → `ticket` (write) → read back, applied to a fresh
//! base and evaluated.
//!
//! # Invariants
//!
//! Each is held by a test (`tests/layering/` reads the `use` lines):
//!
//! - `ticket` knows no tokio, no model and no HTTP; `engine`'s `scheduler`, `policy` and `costs` know no
//!   tensor; `server`, `eval` and `data` know no tensor; `engine` knows no text; `train` knows neither
//!   `engine` nor `server`.
//! - No match over dtype or device outside `kernels` and `model::device`.
//! - The base is bit-identical to what was loaded after any history of swaps.
//! - A row's result does not depend on its neighbours, its chunking or its place in the batch. (Applied
//!   and overlaid tickets give results that differ by rounding; and on a GPU the products are cuBLAS's, which
//!   chooses by the number of rows.)

pub mod cli;
pub mod data;
pub mod device_bench;
pub mod engine;
pub mod eval;
pub mod kernels;
pub mod loadgen;
pub mod metrics;
pub mod model;
pub mod registry;
pub mod server;
pub mod text;
pub mod ticket;
pub mod train;
