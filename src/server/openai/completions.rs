//! `POST /v1/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use super::endpoint::{self, Endpoint, finish_reason};
use super::logprobs::{CompletionLogprobs, TextOffsets};
use super::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use super::raw_prompt::{RawPrompt, take_prompts};
use crate::engine::TokenLogprobs;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
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

    fn validate(
        mut fields: Fields<'_>,
        state: &AppState,
    ) -> Result<(Vec<Prompt>, Sampling), ApiError> {
        let limits = state.engine.limits();
        let prompts = take_prompts(&mut fields, state.engine.capacity())?;
        let max_tokens = fields.take_in("max_tokens", 1..=MAX_TOKENS_LIMIT)?;
        let logprobs = fields.take_in("logprobs", 0..=limits.max_logprobs)?;
        let truncation = prompt::take_truncation(&mut fields, limits)?;
        let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
        let mut sampling = Sampling::take(&mut fields, limits)?;
        sampling.params.logprobs = logprobs;

        let tokens = TokenLimits {
            max_tokens,
            default: DEFAULT_MAX_TOKENS,
            min_tokens: sampling.params.min_tokens,
        };
        let prompts = prompts
            .into_iter()
            .map(|prompt| {
                let ids = match prompt {
                    RawPrompt::Ids(mut ids) => {
                        prompt::cut_to_end(&mut ids, 0, truncation.unwrap_or(usize::MAX));
                        ids
                    }
                    RawPrompt::Text(text) => {
                        prompt::encode(&text, add_special_tokens, truncation, "prompt", state)?
                    }
                };
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
