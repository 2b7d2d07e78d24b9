//! The HTTP server over an engine that echoes: routes, shapes, errors, streams, uploads, the end.

mod chat;
mod completions;
mod errors;
pub mod fixture;
mod live;
mod ops;
mod tickets;
