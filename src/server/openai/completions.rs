//! `POST /v1/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use super::envelope::{Kind, done, finish_reason};
use super::logprobs::{CompletionLogprobs, TextOffsets};
use super::no_effect;
use super::prompts::{RawPrompt, take_prompts};
use super::stream_options::Streaming;
use super::unsupported::{self, UNSUPPORTED};
use crate::engine::TokenLogprobs;
use crate::server::error::ApiError;
use crate::server::exchange;
use crate::server::fields::Fields;
use crate::server::generate::{Prompt, TextDelta, Usage};
use crate::server::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::server::protocol::{Facts, Framing, Job, Piece, Protocol};
use crate::server::sampling::Sampling;
use crate::server::state::AppState;

const KIND: Kind = Kind {
    id_prefix: "cmpl-",
    object: "text_completion",
    chunk_object: "text_completion",
};

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    exchange::respond::<Completions>(state, request).await
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
    streaming: Streaming,
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

    /// The whole completion at `index`.
    fn choice(&mut self, index: usize, completion: TextDelta) -> CompletionChoice {
        CompletionChoice {
            text: completion.text,
            index,
            logprobs: self.logprobs(index, &completion.logprobs),
            finish_reason: completion.finish.map(finish_reason),
        }
    }

    /// Choices of the chunks for a delta.
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

impl Protocol for Completions {
    const FRAMING: Framing = Framing::Events;

    fn read(fields: &mut Fields<'_>, state: &AppState) -> Result<Job<Self>, ApiError> {
        let limits = state.engine.limits();
        let streaming = Streaming::take(fields)?;
        let raw = take_prompts(fields, state.engine.capacity())?;
        let max_tokens = fields.take_in("max_tokens", 1..=MAX_TOKENS_LIMIT)?;
        let logprobs = fields.take_in("logprobs", 0..=limits.max_logprobs)?;
        let truncation = prompt::take_truncation(fields, limits)?;
        let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
        let mut sampling = Sampling::take(fields, limits)?;
        sampling.params.logprobs = logprobs;
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;

        let tokens = TokenLimits {
            max_tokens,
            default: DEFAULT_MAX_TOKENS,
            min_tokens: sampling.params.min_tokens,
        };
        let prompts: Vec<Prompt> = raw
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
        let offsets = || TextOffsets::new(Arc::clone(&state.text));
        let completions = prompts.len() * sampling.n;
        Ok(Job {
            prompts,
            stream: streaming.on,
            protocol: Self {
                streaming,
                offsets: logprobs.map(|_| (0..completions).map(|_| offsets()).collect()),
            },
            sampling,
        })
    }

    fn whole(mut self, facts: &Facts, completions: Vec<TextDelta>, usage: Usage) -> String {
        let completions = completions.into_iter().enumerate();
        let choices: Vec<_> = completions
            .map(|(index, completion)| self.choice(index, completion))
            .collect();
        KIND.whole(facts, &choices, usage)
    }

    fn delta(&mut self, facts: &Facts, index: usize, delta: TextDelta) -> Vec<Piece> {
        let choices = self.chunk_choices(index, delta);
        KIND.chunks(facts, choices, self.streaming.include_usage)
    }

    fn end(&mut self, facts: &Facts, usage: Usage) -> Vec<Piece> {
        KIND.end(facts, self.streaming.include_usage.then_some(usage))
    }

    fn failure(&mut self, _facts: &Facts, error: &ApiError) -> Vec<Piece> {
        vec![Piece::json(&error.body()), done()]
    }
}
