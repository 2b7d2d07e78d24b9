//! OpenAI-compatible routes.

pub mod chat;
pub mod completions;
pub mod embeddings;
mod envelope;
mod facts;
mod logprobs;
pub mod models;
mod no_effect;
mod prompts;
mod stream_options;
pub mod tokens;
mod unsupported;

pub use facts::{FieldFact, fields_without_effect, refused_fields};
