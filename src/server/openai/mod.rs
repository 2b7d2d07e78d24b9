//! OpenAI-compatible routes.

pub mod chat;
pub mod completions;
pub mod embeddings;
mod envelope;
mod logprobs;
pub mod models;
mod no_effect;
mod prompts;
mod stream_options;
pub mod tokens;
mod unsupported;
