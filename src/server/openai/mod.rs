//! OpenAI's routes, and what their two kinds of completion share.

pub mod chat;
pub mod completions;
mod logprobs;
pub mod models;

use std::time::SystemTime;

use axum::response::sse::Event;
use serde::Serialize;

use super::AppState;
use super::body::Fields;
use super::error::ApiError;
use super::generate::Usage;
use super::tickets::unix_seconds;
use crate::engine::FinishReason;
use crate::registry::{Lease, RegistryError};

/// The largest `max_tokens` that is looked at; the context bounds it further.
const MOST_TOKENS: usize = u32::MAX as usize;

/// What every answer and every chunk of one request begins with.
#[derive(Clone, Debug)]
struct Header {
    id: String,
    /// `text_completion`, `chat.completion` or `chat.completion.chunk`.
    object: &'static str,
    created: u64,
    model: String,
}

impl Header {
    fn new(prefix: &str, object: &'static str, model: String) -> Self {
        Self {
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            object,
            created: unix_seconds(SystemTime::now()),
            model,
        }
    }

    fn with<'a, C>(&'a self, choices: &'a [C], usage: Option<Option<Usage>>) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

/// An answer, or a chunk of one.
#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// In streams: absent unless asked for, `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// Writes the chunks of one stream.
struct ChunkWriter {
    header: Header,
    include_usage: bool,
}

impl ChunkWriter {
    fn choice<C: Serialize>(&self, choice: C) -> Result<Event, axum::Error> {
        let usage = self.include_usage.then_some(None);
        Event::default().json_data(self.header.with(&[choice], usage))
    }

    fn usage(&self, usage: Usage) -> Option<Result<Event, axum::Error>> {
        let no_choices: [(); 0] = [];
        let chunk = self.header.with(&no_choices, Some(Some(usage)));
        self.include_usage
            .then(|| Event::default().json_data(chunk))
    }
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// What `model` names; absent, it is the base, as in vLLM.
fn take_model(fields: &mut Fields, state: &AppState) -> Result<String, ApiError> {
    let base = &state.base.manifest.name;
    let name = fields.take("model")?.unwrap_or_else(|| base.clone());
    if name != *base && state.registry.get(&name).is_none() {
        return Err(ApiError::ModelNotFound(name));
    }
    Ok(name)
}

/// The lease that a request for `model` runs under; none for the base. May read a file.
fn lease(model: &str, state: &AppState) -> Result<Option<Lease>, ApiError> {
    if model == state.base.manifest.name {
        return Ok(None);
    }
    match state.registry.lease(model) {
        Ok(lease) => Ok(Some(lease)),
        Err(RegistryError::Unknown(alias)) => Err(ApiError::ModelNotFound(alias)),
        Err(error) => Err(error.into()),
    }
}

/// `min_tokens` has to leave room for the end.
fn check_min_tokens(min_tokens: usize, max_tokens: usize) -> Result<(), ApiError> {
    if min_tokens > max_tokens {
        let problem = format!("must be at most the {max_tokens} tokens to generate");
        return Err(ApiError::invalid("min_tokens", problem));
    }
    Ok(())
}
