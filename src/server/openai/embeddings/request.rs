//! Fields of `POST /v1/embeddings`.

use std::sync::Arc;

use serde::Deserialize;

use super::vector::Form;
use crate::access::Tenant;
use crate::engine::{Limits, Pooling};
use crate::server::error::ApiError;
use crate::server::exchange::take_cache_salt;
use crate::server::fields::Fields;
use crate::server::openai::no_effect;
use crate::server::openai::prompts::{RawPrompt, take_prompts};
use crate::server::openai::unsupported::{self, UNSUPPORTED};
use crate::server::prompt;
use crate::server::sampling::check_vocabulary;
use crate::server::selected::Selected;
use crate::server::state::AppState;

/// Field that holds the prompts.
pub const INPUT: &str = "input";

/// Maximum number of prompts of a request, as at OpenAI.
const MAX_PROMPTS: usize = 2048;

/// A validated request.
pub struct EmbeddingRequest {
    /// The base, a ticket, or a composition of tickets.
    pub selected: Selected,
    /// Token ids of each prompt; none is empty, and each fits the context.
    pub prompts: Vec<Vec<u32>>,
    pub pooling: Pooling,
    pub form: Form,
    /// Order among the caller's requests: lower first.
    pub priority: i32,
    /// Separates the cached KV blocks of requests.
    pub cache_salt: Option<Arc<str>>,
}

/// `pooling`
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PoolingField {
    Last,
    Mean,
}

/// `encoding_format`
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

impl EmbeddingRequest {
    /// Takes the fields. Blocks.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn take(
        fields: &mut Fields<'_>,
        state: &AppState,
        tenant: Option<&Tenant>,
    ) -> Result<Self, ApiError> {
        let limits = state.engine.limits();
        let selected = Selected::take(fields.take("model")?, fields, state, tenant)?;
        selected.check_choices(1)?;
        let priority = fields.take("priority")?.unwrap_or(0);
        let cache_salt = take_cache_salt(fields)?;
        let raw = take_prompts(fields, INPUT, MAX_PROMPTS)?;
        let pooling = match fields.take("pooling")? {
            None | Some(PoolingField::Last) => Pooling::Last,
            Some(PoolingField::Mean) => Pooling::Mean,
        };
        let form = Form {
            dimensions: fields.take_in("dimensions", 1..=limits.hidden_size)?,
            normalize: fields.take("normalize")?.unwrap_or(true),
            base64: matches!(
                fields.take("encoding_format")?,
                Some(EncodingFormat::Base64)
            ),
        };
        let truncation = take_truncation(fields, limits)?;
        let special = fields.take("add_special_tokens")?.unwrap_or(true);
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;
        let encode = |raw| encode(raw, special, truncation, state);
        Ok(Self {
            selected,
            prompts: raw.into_iter().map(encode).collect::<Result<_, _>>()?,
            pooling,
            form,
            priority,
            cache_salt,
        })
    }
}

/// Takes `truncate_prompt_tokens`; −1 is the whole context, as in vLLM.
fn take_truncation(fields: &mut Fields<'_>, limits: &Limits) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    let most = limits.max_model_len;
    match fields.take_in(NAME, -1..=most as i64)? {
        Some(0) => {
            let problem = format!("must be between 1 and {most}, or -1 for {most}, got 0");
            Err(ApiError::invalid(NAME, problem))
        }
        Some(-1) => Ok(Some(most)),
        tokens => Ok(tokens.map(|tokens| tokens as usize)),
    }
}

/// Token ids of a prompt.
fn encode(
    raw: RawPrompt,
    add_special_tokens: bool,
    truncation: Option<usize>,
    state: &AppState,
) -> Result<Vec<u32>, ApiError> {
    let limits = state.engine.limits();
    let ids = match raw {
        RawPrompt::Text(text) => {
            prompt::encode(&text, add_special_tokens, truncation, INPUT, state)?
        }
        RawPrompt::Ids(mut ids) => {
            prompt::cut_to_end(&mut ids, 0, truncation.unwrap_or(usize::MAX));
            ids
        }
    };
    if ids.is_empty() {
        return Err(ApiError::invalid(INPUT, "holds an empty prompt"));
    }
    check_vocabulary(INPUT, &ids, limits)?;
    if ids.len() > limits.max_model_len {
        return Err(ApiError::ContextLength {
            limit: limits.max_model_len,
            prompt: ids.len(),
            completion: Some(0),
            param: INPUT,
        });
    }
    Ok(ids)
}
