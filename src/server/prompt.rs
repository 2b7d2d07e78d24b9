//! Limits of a prompt, before and after it is encoded, and of its completion.

use crate::engine::Limits;
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::Prompt;
use crate::server::sampling::check_vocabulary;
use crate::server::state::AppState;

/// Largest `max_tokens` that parses; the context limits it further.
pub const MAX_TOKENS_LIMIT: usize = u32::MAX as usize;

/// Token limits as the request states them.
pub struct TokenLimits {
    /// `max_tokens`, if requested.
    pub max_tokens: Option<usize>,
    /// Default of `max_tokens`, cut to the context.
    pub default: usize,
    pub min_tokens: usize,
}

/// Most bytes of text that the context may hold; `None` if the tokenizer sets no bound.
pub fn max_bytes(state: &AppState) -> Option<usize> {
    state.text.max_bytes(state.engine.limits().max_model_len)
}

/// Takes `truncate_prompt_tokens`: the number of tokens at its end that a longer prompt is cut to.
///
/// # Errors
/// The number leaves no room for a completion, or is none.
pub fn take_truncation(
    fields: &mut Fields<'_>,
    limits: &Limits,
) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    let most = limits.max_model_len.saturating_sub(1);
    // As in vLLM: whatever the context holds.
    if fields.take_equal(NAME, "-1") {
        return Ok(Some(most));
    }
    fields.take_in(NAME, 1..=most)
}

/// Encodes the text of the field `param`, unless its bytes alone exceed the context. With
/// `truncation`, keeps the special tokens at its beginning and, after those, the last tokens, that
/// many in all; then only the end of a long text is encoded.
///
/// # Errors
/// The text is too long, or cannot be encoded.
pub fn encode(
    text: &str,
    add_special_tokens: bool,
    truncation: Option<usize>,
    param: &'static str,
    state: &AppState,
) -> Result<Vec<u32>, ApiError> {
    let encode = |text: &str| encoded(text, add_special_tokens, param, state);
    if let Some(most) = truncation {
        let mut ids = encode(end_of(text, most, state))?;
        let special = encode("")?;
        let equal = |(id, special): &(&u32, u32)| *id == special;
        let kept = ids.iter().zip(special).take_while(equal).count();
        cut_to_end(&mut ids, kept, most);
        return Ok(ids);
    }
    check_bytes(text, param, state)?;
    encode(text)
}

/// Checks that the bytes of the field `param` alone do not exceed the context.
///
/// # Errors
/// They do.
pub fn check_bytes(text: &str, param: &'static str, state: &AppState) -> Result<(), ApiError> {
    let limit = state.engine.limits().max_model_len;
    match state.text.longer_than(text, limit) {
        Some((bytes, max_bytes)) => Err(ApiError::PromptBytes {
            limit,
            max_bytes,
            bytes: Some(bytes),
            param,
        }),
        None => Ok(()),
    }
}

/// Encodes the text of the field `param` whether or not the context holds it. A text of more than
/// 1 MiB has to be one that the context may hold: encoding takes up to some 300 bytes of memory per
/// byte of text.
///
/// # Errors
/// The text is too long, or cannot be encoded.
pub fn encode_any(
    text: &str,
    add_special_tokens: bool,
    param: &'static str,
    state: &AppState,
) -> Result<Vec<u32>, ApiError> {
    const ALWAYS_ENCODED: usize = 1 << 20;
    if text.len() > ALWAYS_ENCODED {
        return encode(text, add_special_tokens, None, param, state);
    }
    encoded(text, add_special_tokens, param, state)
}

fn encoded(
    text: &str,
    add_special_tokens: bool,
    param: &'static str,
    state: &AppState,
) -> Result<Vec<u32>, ApiError> {
    let ids = state.text.encode(text, add_special_tokens);
    ids.map_err(|error| ApiError::invalid(param, format!("cannot be used: {error}")))
}

/// Cuts a prompt to its first `kept` and its last tokens, `most` in all.
pub fn cut_to_end(ids: &mut Vec<u32>, kept: usize, most: usize) {
    let kept = kept.min(most);
    let removed = ids.len().saturating_sub(most);
    ids.drain(kept..kept + removed);
}

/// The end of a text that has its last `tokens` tokens. The tokens at the cut may differ from those
/// of the whole text, so it begins some earlier.
fn end_of<'a>(text: &'a str, tokens: usize, state: &AppState) -> &'a str {
    /// Tokens before those that are kept.
    const MARGIN: usize = 64;
    state.text.end_of(text, tokens + MARGIN).unwrap_or(text)
}

/// Checks an encoded prompt against the vocabulary and the context. `param` names the field that
/// it comes from.
///
/// # Errors
/// A token id outside the vocabulary, a prompt or completion that exceeds the context, or
/// `min_tokens` above `max_tokens`.
pub fn checked(
    ids: Vec<u32>,
    tokens: &TokenLimits,
    param: &'static str,
    limits: &Limits,
) -> Result<Prompt, ApiError> {
    // A tokenizer may know more tokens than the model's embedding has rows.
    check_vocabulary(param, &ids, limits)?;
    let max_tokens = max_tokens(tokens, ids.len(), param, limits)?;
    if tokens.min_tokens > max_tokens {
        let problem = format!("must be at most the {max_tokens} tokens to generate");
        return Err(ApiError::invalid("min_tokens", problem));
    }
    Ok(Prompt { ids, max_tokens })
}

/// Token limit of a completion: the requested one if it fits the context, else an error; the
/// default is cut to fit.
fn max_tokens(
    tokens: &TokenLimits,
    prompt: usize,
    param: &'static str,
    limits: &Limits,
) -> Result<usize, ApiError> {
    let limit = limits.max_model_len;
    let room = limit.saturating_sub(prompt);
    let too_long = |completion| ApiError::ContextLength {
        limit,
        prompt,
        completion,
        param,
    };
    match tokens.max_tokens {
        // A prompt that is only scored may fill the context.
        Some(0) if prompt <= limit => Ok(0),
        _ if room == 0 => Err(too_long(None)),
        Some(requested) if requested > room => Err(too_long(Some(requested))),
        Some(requested) => Ok(requested),
        None => Ok(tokens.default.min(room)),
    }
}
