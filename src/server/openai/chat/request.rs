//! Fields of `POST /v1/chat/completions`.

use crate::chat::{ParserOptions, ToolDialect};
use crate::engine::Limits;
use crate::server::constrained::{Constrained, compile_forced_call};
use crate::server::conversation::{Conversation, MESSAGES};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::Prompt;
use crate::server::openai::no_effect;
use crate::server::openai::stream_options::Streaming;
use crate::server::openai::unsupported::{self, CHAT, UNSUPPORTED};
use crate::server::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::server::sampling::Sampling;
use crate::server::state::AppState;

/// A validated request.
pub struct ChatRequest {
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub streaming: Streaming,
    /// How answers are read.
    pub parser: ParserOptions,
    /// Whether tokens have log-probabilities.
    pub logprobs: bool,
    /// Whether tokens are spelled `token_id:ID` in lists of log-probabilities.
    pub tokens_as_ids: bool,
    /// Whether prompt and choices have the ids of their tokens.
    pub token_ids: bool,
}

impl ChatRequest {
    /// Takes the fields. Blocks.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn take(fields: &mut Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        let limits = state.engine.limits();
        let conversation = Conversation::take(fields, state)?;
        let streaming = Streaming::take(fields)?;
        let max_tokens = take_max_tokens(fields)?;
        let logprobs = take_logprobs(fields, limits)?;
        let token_ids = fields.take("return_token_ids")?.unwrap_or(false);
        let tokens_as_ids = fields.take("return_tokens_as_token_ids")?.unwrap_or(false);
        let mut sampling = Sampling::take(fields, limits, &state.text)?;
        let constrained = Constrained::take(fields)?;
        unsupported::refuse(fields, CHAT)?;
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;

        sampling.params.logprobs = logprobs;
        let tokens = conversation.encode(state)?;
        sampling.grammar = match &constrained {
            Some(constrained) if !conversation.tools.callable().is_empty() => {
                let problem = "cannot be used while tools may be called; send `tool_choice` none";
                return Err(ApiError::invalid(constrained.param(), problem));
            }
            Some(constrained) => Some(constrained.compile(state)?),
            None if conversation.tools.are_forced() => Some(compile_forced_call(
                &conversation,
                tokens.prompt_end,
                state,
            )?),
            None => None,
        };
        let parser = conversation.parser(tokens.prompt_end, constrained.is_some(), state);
        // Marks of calls must reach the parser.
        if parser.dialect.is_some_and(ToolDialect::has_special_markers) {
            sampling.text.skip_special_tokens = false;
        }
        let limit = TokenLimits {
            max_tokens,
            // The rest of the context.
            default: MAX_TOKENS_LIMIT,
            min_tokens: sampling.params.min_tokens,
        };
        Ok(Self {
            prompt: prompt::checked(tokens.ids, &limit, MESSAGES, limits)?,
            sampling,
            streaming,
            parser,
            logprobs: logprobs.is_some(),
            tokens_as_ids,
            token_ids,
        })
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
