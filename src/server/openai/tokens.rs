//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`: vLLM's routes to the tokenizer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::no_effect;
use super::unsupported::{self, UNSUPPORTED};
use crate::server::caller::Caller;
use crate::server::conversation::{Conversation, MESSAGES};
use crate::server::error::ApiError;
use crate::server::exchange::prepare;
use crate::server::fields::Fields;
use crate::server::prompt;
use crate::server::protocol::json;
use crate::server::selected::Selected;
use crate::server::state::AppState;

const PROMPT: &str = "prompt";
const TOKENS: &str = "tokens";

/// Most token ids of a request for text, if the context is not longer.
const MAX_IDS: usize = 1 << 17;

/// The answer to `POST /tokenize`.
#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    /// The tokens as the vocabulary spells them, if requested.
    token_strs: Option<Vec<String>>,
}

/// `POST /tokenize`
pub async fn tokenize(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, |fields, state| {
        let strings = fields.take("return_token_strs")?.unwrap_or(false);
        let tokens = take_tokens(fields, state)?;
        let spelling = |id: &u32| state.text.token_spelling(*id);
        Ok(json(&Tokenized {
            count: tokens.len(),
            max_model_len: state.engine.limits().max_model_len,
            token_strs: strings.then(|| tokens.iter().map(spelling).collect()),
            tokens,
        }))
    })
    .await
}

/// Takes `prompt` or `messages`, and encodes it.
fn take_tokens(fields: &mut Fields<'_>, state: &AppState) -> Result<Vec<u32>, ApiError> {
    let special: Option<bool> = fields.take("add_special_tokens")?;
    let Some(text) = fields.take::<String>(PROMPT)? else {
        if !fields.names().any(|name| name == MESSAGES) {
            let problem = format!("is missing; send `{PROMPT}` or `{MESSAGES}`");
            return Err(ApiError::invalid(PROMPT, problem));
        }
        if special == Some(true) {
            return Err(ApiError::Unsupported {
                param: "add_special_tokens".to_owned(),
                reason: "the chat template adds the special tokens of a conversation",
            });
        }
        return Ok(Conversation::take(fields, state)?.encode(state)?.ids);
    };
    if fields.take_raw(MESSAGES).is_some() {
        let problem = format!("cannot be sent beside `{PROMPT}`");
        return Err(ApiError::invalid(MESSAGES, problem));
    }
    // Fields of a conversation change nothing here, as in vLLM.
    for name in ["add_generation_prompt", "continue_final_message"] {
        fields.take::<bool>(name)?;
    }
    prompt::encode_any(&text, special.unwrap_or(true), PROMPT, state)
}

/// `POST /detokenize`
pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, |fields, state| {
        let most = state.engine.limits().max_model_len.max(MAX_IDS);
        let ids: Vec<u32> = fields
            .take_list(TOKENS, most)?
            .ok_or_else(|| ApiError::invalid(TOKENS, "is missing"))?;
        let size = state.text.vocab_size();
        if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= size) {
            let problem = format!("is {id}; the vocabulary has {size} tokens");
            return Err(ApiError::invalid(format!("{TOKENS}[{i}]"), problem));
        }
        let prompt = state
            .text
            .decode(&ids, false)
            .map_err(|error| ApiError::invalid(TOKENS, format!("cannot be used: {error}")))?;
        Ok(json(&json!({PROMPT: prompt})))
    })
    .await
}

/// Answers with the JSON that `read` makes of the fields, `model` aside.
async fn answer(
    state: Arc<AppState>,
    request: Request,
    read: impl FnOnce(&mut Fields<'_>, &AppState) -> Result<String, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let caller = Caller::of(request.extensions());
    let tenant = caller.tenant.clone();
    let prepared = prepare(&state, &caller, request, move |fields, state| {
        // All models have the base's tokenizer.
        Selected::take(fields.take("model")?, fields, state, tenant.as_ref())?;
        let body = read(fields, state)?;
        unsupported::refuse(fields, UNSUPPORTED)?;
        no_effect::discard(fields)?;
        Ok(body)
    });
    let (_permit, body, ignored) = prepared.await?;
    let kind = HeaderValue::from_static("application/json");
    Ok(ignored.told(([(header::CONTENT_TYPE, kind)], body).into_response()))
}

/// `GET /tokenizer_info`: as in vLLM, the special tokens stand under their roles (`bos_token`,
/// `eos_token`, …).
pub async fn info(State(state): State<Arc<AppState>>) -> Response {
    let text = &state.text;
    let roles = text.special_roles().iter();
    let mut facts: Map<String, Value> = roles
        .map(|(role, token)| (role.clone(), token.as_str().into()))
        .collect();
    let special = |id| json!({"id": id, "text": text.token_spelling(id)});
    for (name, fact) in [
        ("tokenizer_class", text.tokenizer_class().into()),
        ("chat_template", text.chat_template().into()),
        ("special_tokens", text.special_ids().map(special).collect()),
        ("eos_token_ids", text.eos_token_ids().into()),
        ("vocab_size", text.vocab_size().into()),
        ("max_model_len", state.engine.limits().max_model_len.into()),
    ] {
        facts.insert(name.to_owned(), fact);
    }
    Json(facts).into_response()
}
