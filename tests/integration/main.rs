//! The integration tests: one binary, so that the library is linked once.

mod bench;
mod clients;
mod data;
mod decoder;
mod deterministic;
mod docs;
mod end_to_end;
mod engine;
mod eval;
mod extract;
mod folder;
mod golden;
mod http;
mod hub;
mod keys;
mod lifecycle;
mod loading;
mod prefix;
mod quantized;
mod resident;
#[cfg(target_os = "linux")]
mod starved;
mod support;
mod templates;
mod tenants;
mod text;
mod train;
mod variables;
