//! Load client for any OpenAI-compatible server: the same work for each, measured by the client.
//!
//! Requests stream. Prompts have an exact number of tokens and share no prefix, and each request
//! generates exactly the requested number of tokens, whether the model would stop or not. The
//! report counts the requests whose token counts on the server differ from that.

mod client;
mod error;
mod prompts;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod workload;

pub use client::{Server, ServerKind};
pub use error::LoadError;
pub use prompts::PromptWords;
pub use report::{Percentiles, Report};
pub use run::run;
pub use workload::{Arrivals, Popularity, Workload};
