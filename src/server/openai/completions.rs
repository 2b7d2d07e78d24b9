//! `POST /v1/completions`

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{CompletionLogprobs, CompletionOffsets};
use super::{ChunkWriter, Header, MOST_TOKENS, check_min_tokens, finish_reason, lease, take_model};
use crate::server::body::{self, Fields, from_value};
use crate::server::error::ApiError;
use crate::server::generate::{self, Job, Piece, Prompt, Usage};
use crate::server::sampling::{Sampling, check_vocabulary, max_tokens};
use crate::server::sse::{self, Chunks};
use crate::server::{AppState, blocking};
use crate::text::Text;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

#[derive(Serialize)]
struct Choice {
    text: String,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Answers a request for completions of plain prompts.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = body::read(request.into_body(), state.options.max_body_bytes).await?;
    let (job, model) = {
        let state = state.clone();
        blocking(move || prepare(&state, &body, arrived)).await?
    };
    let mut usage = Usage::of_prompts(&job.prompts);
    let header = Header::new("cmpl", "text_completion", model);
    let (stream, include_usage) = (job.sampling.stream, job.sampling.include_usage);
    let logprobs = job.sampling.params.logprobs.is_some();
    let sequences = generate::submit(&state, job)?;
    let offsets = sequences
        .iter()
        .map(|_| CompletionOffsets::new(state.text.clone()));
    let mut offsets = logprobs.then(|| offsets.collect::<Vec<_>>());
    if stream {
        let writer = ChunkWriter {
            header,
            include_usage,
        };
        let chunks = CompletionChunks { writer, offsets };
        return Ok(sse::respond(sequences, chunks, usage));
    }
    let wholes = generate::collect(sequences).await?;
    let mut choices = Vec::with_capacity(wholes.len());
    for (index, whole) in wholes.into_iter().enumerate() {
        usage.add(whole.tokens);
        let logprobs = offsets
            .as_mut()
            .map(|all| all[index].advance(&whole.logprobs));
        choices.push(Choice {
            text: whole.text,
            index,
            logprobs,
            finish_reason: whole.finish.map(finish_reason),
        });
    }
    Ok(Json(header.with(&choices, Some(Some(usage)))).into_response())
}

/// From the body to a valid job; reads, encodes and leases, so it may take a while.
fn prepare(state: &AppState, body: &[u8], arrived: Instant) -> Result<(Job, String), ApiError> {
    let limits = state.engine.limits();
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields, state)?;
    let prompt = fields.take("prompt")?;
    let asked = fields.take_in("max_tokens", 1..=MOST_TOKENS)?;
    let logprobs = fields.take_in("logprobs", 0..=limits.max_logprobs)?;
    let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
    let mut sampling = Sampling::take(&mut fields, limits)?;
    sampling.params.logprobs = logprobs;

    let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt", "is missing"))?;
    let mut prompts = Vec::new();
    for ids in encode_prompts(prompt, add_special_tokens, &state.text)? {
        if ids.is_empty() {
            return Err(ApiError::invalid("prompt", "is empty"));
        }
        check_vocabulary("prompt", &ids, limits)?;
        let max_tokens = max_tokens(asked, DEFAULT_MAX_TOKENS, ids.len(), "prompt", limits)?;
        check_min_tokens(sampling.params.min_tokens, max_tokens)?;
        prompts.push(Prompt { ids, max_tokens });
    }
    let ticket = lease(&model, state)?;
    let job = Job {
        prompts,
        sampling,
        ticket,
        arrived,
    };
    Ok((job, model))
}

/// A string, a list of token ids, or a list of either.
fn encode_prompts(prompt: Value, special: bool, text: &Text) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |prompt: &str| {
        let ids = text.encode(prompt, special);
        ids.map_err(|error| ApiError::invalid("prompt", error))
    };
    let shape = || {
        let expected = "must be a string, a list of strings, a list of token ids, or a list of \
                        lists of token ids";
        ApiError::invalid("prompt", expected)
    };
    match prompt {
        Value::String(prompt) => Ok(vec![encode(&prompt)?]),
        Value::Array(items) if items.is_empty() => Err(ApiError::invalid("prompt", "is empty")),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            Ok(vec![from_value("prompt", Value::Array(items))?])
        }
        Value::Array(items) => {
            let strings = items.iter().all(Value::is_string);
            if !strings && !items.iter().all(Value::is_array) {
                return Err(shape());
            }
            let one = |item| match item {
                Value::String(prompt) => encode(&prompt),
                ids => from_value("prompt", ids),
            };
            items.into_iter().map(one).collect()
        }
        _ => Err(shape()),
    }
}

struct CompletionChunks {
    writer: ChunkWriter,
    /// One a sequence, where log-probabilities were asked for.
    offsets: Option<Vec<CompletionOffsets>>,
}

impl Chunks for CompletionChunks {
    fn of_piece(&mut self, index: usize, piece: Piece) -> Vec<Result<Event, axum::Error>> {
        let mut events = Vec::new();
        if !piece.text.is_empty() || !piece.logprobs.is_empty() {
            let offsets = self.offsets.as_mut();
            events.push(self.writer.choice(Choice {
                text: piece.text,
                index,
                logprobs: offsets.map(|all| all[index].advance(&piece.logprobs)),
                finish_reason: None,
            }));
        }
        if let Some(finish) = piece.finish {
            events.push(self.writer.choice(Choice {
                text: String::new(),
                index,
                logprobs: None,
                finish_reason: Some(finish_reason(finish)),
            }));
        }
        events
    }

    fn of_usage(&self, usage: Usage) -> Option<Result<Event, axum::Error>> {
        self.writer.usage(usage)
    }
}
