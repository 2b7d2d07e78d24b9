//! OpenAI-compatible routes.

pub mod chat;
pub mod completions;
mod envelope;
mod logprobs;
pub mod models;
mod no_effect;
mod stream_options;
pub mod tokens;
mod unsupported;
