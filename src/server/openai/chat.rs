//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use super::envelope::{Kind, done, finish_reason};
use super::logprobs::{ChatLogprobs, TokenSpelling};
use super::no_effect;
use super::stream_options::Streaming;
use super::unsupported::{self, CHAT, UNSUPPORTED};
use crate::engine::Limits;
use crate::server::conversation::{Conversation, MESSAGES};
use crate::server::error::ApiError;
use crate::server::exchange;
use crate::server::fields::Fields;
use crate::server::generate::{TextDelta, Usage};
use crate::server::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::server::protocol::{Facts, Framing, Job, Piece, Protocol};
use crate::server::sampling::Sampling;
use crate::server::state::AppState;

const ASSISTANT: &str = "assistant";

const KIND: Kind = Kind {
    id_prefix: "chatcmpl-",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
};

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    exchange::respond::<Chat>(state, request).await
}

/// One whole choice.
#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// The message of a whole choice.
#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

/// One choice of a chunk.
#[derive(Serialize)]
struct ChatChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// State of one response.
struct Chat {
    streaming: Streaming,
    /// Per completion: whether a chunk with its role was written.
    role_sent: Vec<bool>,
    /// Present if log-probabilities were requested.
    logprobs: Option<TokenSpelling>,
}

impl Chat {
    fn logprobs(&self, delta: &TextDelta) -> Option<ChatLogprobs> {
        let spelling = self.logprobs.as_ref()?;
        Some(ChatLogprobs::new(spelling, delta))
    }

    /// The whole completion at `index`.
    fn choice(&mut self, index: usize, completion: TextDelta) -> ChatChoice {
        ChatChoice {
            index,
            logprobs: self.logprobs(&completion),
            message: Message {
                role: ASSISTANT,
                content: completion.text,
                refusal: None,
            },
            finish_reason: completion.finish.map(finish_reason),
        }
    }

    /// Choices of the chunks for a delta.
    fn chunk_choices(&mut self, index: usize, delta: TextDelta) -> Vec<ChatChunkChoice> {
        let mut choices = Vec::new();
        if !std::mem::replace(&mut self.role_sent[index], true) {
            choices.push(ChatChunkChoice {
                index,
                delta: Delta {
                    role: Some(ASSISTANT),
                    content: Some(String::new()),
                },
                logprobs: None,
                finish_reason: None,
            });
        }
        if !delta.text.is_empty() || !delta.logprobs.is_empty() {
            choices.push(ChatChunkChoice {
                index,
                logprobs: self.logprobs(&delta),
                delta: Delta {
                    role: None,
                    content: Some(delta.text),
                },
                finish_reason: None,
            });
        }
        if let Some(finish) = delta.finish {
            choices.push(ChatChunkChoice {
                index,
                delta: Delta::default(),
                logprobs: None,
                finish_reason: Some(finish_reason(finish)),
            });
        }
        choices
    }
}

impl Protocol for Chat {
    const FRAMING: Framing = Framing::Events;

    fn read(fields: &mut Fields<'_>, state: &AppState) -> Result<Job<Self>, ApiError> {
        let limits = state.engine.limits();
        let conversation = Conversation::take(fields, state)?;
        let streaming = Streaming::take(fields)?;
        let max_tokens = take_max_tokens(fields)?;
        let logprobs = take_logprobs(fields, limits)?;
        let mut sampling = Sampling::take(fields, limits, &state.text)?;
        sampling.params.logprobs = logprobs;
        unsupported::refuse(fields, CHAT)?;
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;

        let tokens = TokenLimits {
            max_tokens,
            // The rest of the context.
            default: MAX_TOKENS_LIMIT,
            min_tokens: sampling.params.min_tokens,
        };
        let prompt = prompt::checked(conversation.encode(state)?, &tokens, MESSAGES, limits)?;
        Ok(Job {
            prompts: vec![prompt],
            stream: streaming.on,
            protocol: Self {
                streaming,
                role_sent: vec![false; sampling.n],
                logprobs: logprobs.map(|_| TokenSpelling::new(Arc::clone(&state.text), false)),
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

/// `max_completion_tokens`, or its deprecated name `max_tokens`.
fn take_max_tokens(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    let range = 1..=MAX_TOKENS_LIMIT;
    let deprecated = fields.take_in("max_tokens", range.clone())?;
    let current = fields.take_in("max_completion_tokens", range)?;
    Ok(current.or(deprecated))
}

/// Number of alternatives per token if `logprobs` is true: `top_logprobs`, by default 0.
fn take_logprobs(fields: &mut Fields<'_>, limits: &Limits) -> Result<Option<usize>, ApiError> {
    const TOP: &str = "top_logprobs";
    let on = fields.take("logprobs")?.unwrap_or(false);
    let top = fields.take_in(TOP, 0..=limits.max_logprobs)?;
    match top {
        Some(1..) if !on => {
            let problem = "is only allowed when `logprobs` is true";
            Err(ApiError::invalid(TOP, problem))
        }
        top => Ok(on.then_some(top.unwrap_or(0))),
    }
}
