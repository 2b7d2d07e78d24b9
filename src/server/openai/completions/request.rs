//! Fields of `POST /v1/completions`.

use std::sync::Arc;

use crate::server::constrained::Constrained;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::Prompt;
use crate::server::openai::no_effect;
use crate::server::openai::prompts::{RawPrompt, take_prompts};
use crate::server::openai::stream_options::Streaming;
use crate::server::openai::unsupported::{self, COMPLETIONS, UNSUPPORTED};
use crate::server::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::server::sampling::{MAX_N, Sampling};
use crate::server::state::AppState;
use crate::text::TokenDecoder;

/// Maximum number of prompts of a request: more than a body of the default size holds in text.
const MAX_PROMPTS: usize = 1 << 16;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A validated request.
pub struct CompletionRequest {
    pub prompts: Vec<Prompt>,
    /// With as many choices as are generated: `best_of`.
    pub sampling: Sampling,
    pub streaming: Streaming,
    pub answer: Answer,
}

/// What an answer shows.
pub struct Answer {
    /// Choices per prompt, the best of those that are generated.
    pub n: usize,
    /// Texts of the prompts, if choices begin with them.
    pub echo: Option<Vec<String>>,
    /// Whether generated tokens have log-probabilities, and with `echo` the prompt's as well.
    pub logprobs: bool,
    /// Whether the prompt's log-probabilities have a list of their own.
    pub prompt_logprobs: bool,
    /// Whether choices have the ids of their tokens.
    pub token_ids: bool,
    /// Whether tokens are spelled `token_id:ID` in lists of log-probabilities.
    pub tokens_as_ids: bool,
}

impl CompletionRequest {
    /// Takes the fields. Blocks.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn take(fields: &mut Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        let limits = state.engine.limits();
        let streaming = Streaming::take(fields)?;
        let raw = take_prompts(fields, "prompt", MAX_PROMPTS)?;
        let encoding = Encoding::take(fields, state)?;
        let max_tokens = fields.take_in("max_tokens", 0..=MAX_TOKENS_LIMIT)?;
        let logprobs = fields.take_in("logprobs", 0..=limits.max_logprobs)?;
        let echo = fields.take("echo")?.unwrap_or(false);
        let token_ids = fields.take("return_token_ids")?.unwrap_or(false);
        let tokens_as_ids = fields.take("return_tokens_as_token_ids")?.unwrap_or(false);
        let mut sampling = Sampling::take(fields, limits, &state.text)?;
        let n = sampling.n;
        sampling.n = take_best_of(fields, n, streaming)?;
        let constrained = Constrained::take(fields)?;
        unsupported::refuse(fields, COMPLETIONS)?;
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;

        let compiled = constrained.map(|constrained| constrained.compile(state));
        sampling.grammar = compiled.transpose()?;
        let prompt_logprobs = sampling.prompt_logprobs.is_some();
        if echo {
            sampling.prompt_logprobs = sampling.prompt_logprobs.max(logprobs);
        }
        // The best choices are those with the largest log-probability per token.
        let ranked = (sampling.n > n).then_some(0);
        sampling.params.logprobs = logprobs.or(ranked);
        let tokens = TokenLimits {
            max_tokens,
            default: DEFAULT_MAX_TOKENS,
            min_tokens: sampling.params.min_tokens,
        };
        let mut texts = Vec::new();
        let mut prompts = Vec::with_capacity(raw.len());
        for raw in raw {
            let ids = encoding.encode(&raw, state)?;
            if echo {
                texts.push(encoding.text(raw, &ids, state));
            }
            prompts.push(prompt::checked(ids, &tokens, "prompt", limits)?);
        }
        Ok(Self {
            prompts,
            sampling,
            streaming,
            answer: Answer {
                n,
                echo: echo.then_some(texts),
                logprobs: logprobs.is_some(),
                prompt_logprobs,
                token_ids,
                tokens_as_ids,
            },
        })
    }
}

/// How prompts become token ids.
struct Encoding {
    /// Number of tokens at its end that a longer prompt is cut to.
    truncation: Option<usize>,
    add_special_tokens: bool,
    /// Text after the one to insert.
    suffix: Option<String>,
}

impl Encoding {
    fn take(fields: &mut Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        let suffix: Option<String> = fields.take("suffix")?;
        Ok(Self {
            truncation: prompt::take_truncation(fields, state.engine.limits())?,
            add_special_tokens: fields.take("add_special_tokens")?.unwrap_or(true),
            suffix: suffix.filter(|suffix| !suffix.is_empty()),
        })
    }

    /// Token ids of a prompt; at least one.
    fn encode(&self, raw: &RawPrompt, state: &AppState) -> Result<Vec<u32>, ApiError> {
        let ids = match (raw, &self.suffix) {
            (RawPrompt::Text(prefix), Some(suffix)) => self.insertion(prefix, suffix, state)?,
            (RawPrompt::Ids(_), Some(_)) => {
                let problem = "needs a `prompt` in text, not in token ids";
                return Err(ApiError::invalid("suffix", problem));
            }
            (RawPrompt::Text(text), None) => {
                let (special, truncation) = (self.add_special_tokens, self.truncation);
                prompt::encode(text, special, truncation, "prompt", state)?
            }
            (RawPrompt::Ids(ids), None) => {
                let mut ids = ids.clone();
                prompt::cut_to_end(&mut ids, 0, self.truncation.unwrap_or(usize::MAX));
                ids
            }
        };
        if ids.is_empty() {
            return Err(ApiError::invalid("prompt", "is empty"));
        }
        Ok(ids)
    }

    /// Token ids of a prompt that asks for the text between two others.
    fn insertion(
        &self,
        prefix: &str,
        suffix: &str,
        state: &AppState,
    ) -> Result<Vec<u32>, ApiError> {
        if self.truncation.is_some() {
            let problem = "cannot be used with `suffix`";
            return Err(ApiError::invalid("truncate_prompt_tokens", problem));
        }
        for (text, param) in [(prefix, "prompt"), (suffix, "suffix")] {
            prompt::check_bytes(text, param, state)?;
        }
        let ids = state
            .text
            .encode_infill(prefix, suffix, self.add_special_tokens);
        ids.map_err(|error| ApiError::invalid("suffix", format!("cannot be used: {error}")))
    }

    /// The prompt as `echo` shows it: as it was sent, or the text of its tokens.
    fn text(&self, raw: RawPrompt, ids: &[u32], state: &AppState) -> String {
        match raw {
            RawPrompt::Text(text) if self.truncation.is_none() => text,
            _ => {
                let mut decoder = TokenDecoder::new(Arc::clone(&state.text), true);
                let mut text: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
                text.extend(decoder.finish());
                text
            }
        }
    }
}

/// Takes `best_of`: the number of choices that are generated, of which the best `n` are returned.
fn take_best_of(
    fields: &mut Fields<'_>,
    n: usize,
    streaming: Streaming,
) -> Result<usize, ApiError> {
    const NAME: &str = "best_of";
    match fields.take_in(NAME, 1..=MAX_N)? {
        Some(best_of) if best_of < n => {
            let problem = format!("must be at least `n` ({n}), got {best_of}");
            Err(ApiError::invalid(NAME, problem))
        }
        Some(best_of) if best_of > n && streaming.on => {
            let problem = "must equal `n` in a stream: the best are known at the end";
            Err(ApiError::invalid(NAME, problem))
        }
        best_of => Ok(best_of.unwrap_or(n)),
    }
}
