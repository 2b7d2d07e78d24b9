//! `POST /v1/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::endpoint::{self, Endpoint, finish_reason};
use super::logprobs::{CompletionLogprobs, TextOffsets};
use super::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::engine::TokenLogprobs;
use crate::server::body::{Fields, from_value};
use crate::server::error::ApiError;
use crate::server::generate::{Prompt, TextDelta};
use crate::server::sampling::Sampling;
use crate::server::state::AppState;
use crate::text::Text;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    endpoint::respond::<Completions>(state, request).await
}

/// One choice of a response or of a chunk.
#[derive(Serialize)]
struct CompletionChoice {
    text: String,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// State of one response.
struct Completions {
    /// One per completion, if log-probabilities were requested.
    offsets: Option<Vec<TextOffsets>>,
}

impl Completions {
    fn logprobs(
        &mut self,
        index: usize,
        tokens: &[(u32, TokenLogprobs)],
    ) -> Option<CompletionLogprobs> {
        let offsets = &mut self.offsets.as_mut()?[index];
        Some(offsets.advance(tokens))
    }
}

impl Endpoint for Completions {
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    type Choice = CompletionChoice;
    type ChunkChoice = CompletionChoice;

    fn validate(mut fields: Fields, state: &AppState) -> Result<(Vec<Prompt>, Sampling), ApiError> {
        let limits = state.engine.limits();
        let prompt: Option<Value> = fields.take("prompt")?;
        let max_tokens = fields.take_in("max_tokens", 1..=MAX_TOKENS_LIMIT)?;
        let logprobs = fields.take_in("logprobs", 0..=limits.max_logprobs)?;
        let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
        let mut sampling = Sampling::take(&mut fields, limits)?;
        sampling.params.logprobs = logprobs;

        let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt", "is missing"))?;
        let tokens = TokenLimits {
            max_tokens,
            default: DEFAULT_MAX_TOKENS,
            min_tokens: sampling.params.min_tokens,
        };
        let prompts = encode_prompts(prompt, add_special_tokens, &state.text)?
            .into_iter()
            .map(|ids| {
                if ids.is_empty() {
                    return Err(ApiError::invalid("prompt", "is empty"));
                }
                prompt::checked(ids, &tokens, "prompt", limits)
            })
            .collect::<Result<_, _>>()?;
        Ok((prompts, sampling))
    }

    fn new(text: &Arc<Text>, completions: usize, logprobs: bool) -> Self {
        let offsets = || TextOffsets::new(text.clone());
        Self {
            offsets: logprobs.then(|| (0..completions).map(|_| offsets()).collect()),
        }
    }

    fn choice(&mut self, index: usize, completion: TextDelta) -> CompletionChoice {
        CompletionChoice {
            text: completion.text,
            index,
            logprobs: self.logprobs(index, &completion.logprobs),
            finish_reason: completion.finish.map(finish_reason),
        }
    }

    fn chunk_choices(&mut self, index: usize, delta: TextDelta) -> Vec<CompletionChoice> {
        let mut choices = Vec::new();
        if !delta.text.is_empty() || !delta.logprobs.is_empty() {
            choices.push(CompletionChoice {
                text: delta.text,
                index,
                logprobs: self.logprobs(index, &delta.logprobs),
                finish_reason: None,
            });
        }
        if let Some(finish) = delta.finish {
            choices.push(CompletionChoice {
                text: String::new(),
                index,
                logprobs: None,
                finish_reason: Some(finish_reason(finish)),
            });
        }
        choices
    }
}

/// Encodes `prompt`: a string, a list of token ids, or a list of either.
fn encode_prompts(
    prompt: Value,
    add_special_tokens: bool,
    text: &Text,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |prompt: &str| {
        text.encode(prompt, add_special_tokens)
            .map_err(|error| ApiError::invalid("prompt", error))
    };
    let wrong_type = || {
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
                return Err(wrong_type());
            }
            let ids = |item| match item {
                Value::String(prompt) => encode(&prompt),
                list => from_value("prompt", list),
            };
            items.into_iter().map(ids).collect()
        }
        _ => Err(wrong_type()),
    }
}
