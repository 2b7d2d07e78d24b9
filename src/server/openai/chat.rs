//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value};

use super::endpoint::{self, Endpoint, finish_reason};
use super::logprobs::ChatLogprobs;
use super::prompt::{self, MAX_TOKENS_LIMIT, TokenLimits};
use crate::engine::Limits;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, from_value};
use crate::server::generate::{Prompt, TextDelta};
use crate::server::sampling::Sampling;
use crate::server::state::AppState;
use crate::text::{ChatMessage, Text, TextError};

const ASSISTANT: &str = "assistant";
const MESSAGES: &str = "messages";
/// Maximum number of messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    endpoint::respond::<Chat>(state, request).await
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
    /// Per completion: whether a chunk with its role was written.
    role_sent: Vec<bool>,
    /// Present if log-probabilities were requested.
    logprobs: Option<Arc<Text>>,
}

impl Chat {
    fn logprobs(&self, delta: &TextDelta) -> Option<ChatLogprobs> {
        let text = self.logprobs.as_ref()?;
        Some(ChatLogprobs::new(text, &delta.logprobs))
    }
}

impl Endpoint for Chat {
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    type Choice = ChatChoice;
    type ChunkChoice = ChatChunkChoice;

    fn validate(
        mut fields: Fields<'_>,
        state: &AppState,
    ) -> Result<(Vec<Prompt>, Sampling), ApiError> {
        let limits = state.engine.limits();
        let messages = take_messages(&mut fields)?;
        let max_tokens = take_max_tokens(&mut fields)?;
        let logprobs = take_logprobs(&mut fields, limits)?;
        let truncation = prompt::take_truncation(&mut fields, limits)?;
        let add_generation_prompt = fields.take("add_generation_prompt")?.unwrap_or(true);
        let mut sampling = Sampling::take(&mut fields, limits)?;
        sampling.params.logprobs = logprobs;

        let max_bytes = match truncation {
            Some(_) => None,
            None => prompt::max_bytes(state),
        };
        let prompt = render(&messages, add_generation_prompt, max_bytes, state)?;
        let ids = prompt::encode(&prompt, false, truncation, MESSAGES, state)?;
        if ids.is_empty() {
            return Err(ApiError::invalid(MESSAGES, "render to an empty prompt"));
        }
        let tokens = TokenLimits {
            max_tokens,
            // The rest of the context.
            default: MAX_TOKENS_LIMIT,
            min_tokens: sampling.params.min_tokens,
        };
        let prompt = prompt::checked(ids, &tokens, MESSAGES, limits)?;
        Ok((vec![prompt], sampling))
    }

    fn new(text: &Arc<Text>, completions: usize, logprobs: bool) -> Self {
        Self {
            role_sent: vec![false; completions],
            logprobs: logprobs.then(|| text.clone()),
        }
    }

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

/// Renders the conversation, up to the most bytes that the context may hold, if that is known.
fn render(
    messages: &[ChatMessage],
    add_generation_prompt: bool,
    max_bytes: Option<usize>,
    state: &AppState,
) -> Result<String, ApiError> {
    let most = max_bytes.unwrap_or(usize::MAX);
    let prompt = state
        .text
        .render_chat_within(messages, add_generation_prompt, most);
    prompt.map_err(|error| match (error, max_bytes) {
        (TextError::RenderedTooLong { max_bytes }, Some(most)) if max_bytes == most => {
            ApiError::PromptBytes {
                limit: state.engine.limits().max_model_len,
                max_bytes,
                bytes: None,
                param: MESSAGES,
            }
        }
        (error, _) => ApiError::invalid(MESSAGES, format!("cannot be used: {error}")),
    })
}

fn take_messages(fields: &mut Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages: Vec<Map<String, Value>> = fields
        .take_list(MESSAGES, MAX_MESSAGES)?
        .ok_or_else(|| ApiError::invalid(MESSAGES, "is missing"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid(MESSAGES, "is empty"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| chat_message(&format!("messages[{i}]"), message))
        .collect()
}

/// Parses one message. `param` names it in errors; unknown fields go to the chat template.
fn chat_message(param: &str, mut message: Map<String, Value>) -> Result<ChatMessage, ApiError> {
    let role: String = match message.remove("role") {
        Some(role) => from_value(&format!("{param}.role"), role)?,
        None => return Err(ApiError::invalid(format!("{param}.role"), "is missing")),
    };
    let content = message.remove("content").unwrap_or_default();
    // Assistant messages may hold tool calls instead of content.
    if content.is_null() && role != ASSISTANT {
        return Err(ApiError::invalid(format!("{param}.content"), "is missing"));
    }
    Ok(ChatMessage {
        role,
        content: message_text(&format!("{param}.content"), content)?,
        extra: message,
    })
}

/// Text of a message's content: a string, or a list of text parts, which are joined by line breaks
/// as in vLLM.
fn message_text(param: &str, content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::Null => return Ok(String::new()),
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => {
            return Err(ApiError::invalid(
                param,
                "must be a string or a list of parts",
            ));
        }
    };
    let part_text = |(i, mut part): (usize, Value)| {
        if part["type"] != "text" {
            return Err(ApiError::Unsupported {
                param: format!("{param}[{i}].type"),
                reason: "only text parts are accepted",
            });
        }
        from_value::<String>(&format!("{param}[{i}].text"), part["text"].take())
    };
    let texts: Vec<_> = parts
        .into_iter()
        .enumerate()
        .map(part_text)
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}
