//! OpenAI-compatible routes. [`endpoint`] holds the path that both completion endpoints share.

pub mod chat;
pub mod completions;
mod endpoint;
mod logprobs;
pub mod models;
mod prompt;
mod raw_prompt;
