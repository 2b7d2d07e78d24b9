//! The HTTP server over an echoing engine: routes, response shapes, errors, streams, uploads and
//! the drain.

mod access;
mod adapters;
mod bodies;
mod chat;
mod completions;
mod embeddings;
mod engine;
mod errors;
mod front;
mod http2;
mod lifecycle;
mod limits;
mod live;
mod malformed;
mod ops;
mod prompts;
mod selections;
mod tenants;
mod tickets;
mod tls;
mod tokens;
mod uploads;
