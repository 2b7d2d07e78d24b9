//! `POST /v1/chat/completions`

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::logprobs::ChatLogprobs;
use super::{ChunkWriter, Header, MOST_TOKENS, check_min_tokens, finish_reason, lease, take_model};
use crate::engine::Limits;
use crate::server::body::{self, Fields, from_value};
use crate::server::error::ApiError;
use crate::server::generate::{self, Job, Piece, Prompt, Usage};
use crate::server::sampling::{Sampling, check_vocabulary, max_tokens};
use crate::server::sse::{self, Chunks};
use crate::server::{AppState, blocking};
use crate::text::{ChatMessage, Text};

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChunkChoice {
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

const ASSISTANT: &str = "assistant";

/// Answers a conversation.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = body::read(request.into_body(), state.options.max_body_bytes).await?;
    let (job, model) = {
        let state = state.clone();
        blocking(move || prepare(&state, &body, arrived)).await?
    };
    let mut usage = Usage::of_prompts(&job.prompts);
    let (stream, include_usage) = (job.sampling.stream, job.sampling.include_usage);
    let logprobs = job.sampling.params.logprobs.map(|_| state.text.clone());
    let sequences = generate::submit(&state, job)?;
    if stream {
        let writer = ChunkWriter {
            header: Header::new("chatcmpl", "chat.completion.chunk", model),
            include_usage,
        };
        let chunks = ChatChunks {
            writer,
            begun: vec![false; sequences.len()],
            logprobs,
        };
        return Ok(sse::respond(sequences, chunks, usage));
    }
    let wholes = generate::collect(sequences).await?;
    let mut choices = Vec::with_capacity(wholes.len());
    for (index, whole) in wholes.into_iter().enumerate() {
        usage.add(whole.tokens);
        let text = logprobs.as_ref();
        choices.push(Choice {
            index,
            logprobs: text.map(|text| ChatLogprobs::new(text, &whole.logprobs)),
            message: Message {
                role: ASSISTANT,
                content: whole.text,
                refusal: None,
            },
            finish_reason: whole.finish.map(finish_reason),
        });
    }
    let header = Header::new("chatcmpl", "chat.completion", model);
    Ok(Json(header.with(&choices, Some(Some(usage)))).into_response())
}

/// From the body to a valid job; renders, encodes and leases, so it may take a while.
fn prepare(state: &AppState, body: &[u8], arrived: Instant) -> Result<(Job, String), ApiError> {
    let limits = state.engine.limits();
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields, state)?;
    let messages = take_messages(&mut fields)?;
    let asked = take_max_tokens(&mut fields)?;
    let logprobs = take_logprobs(&mut fields, limits)?;
    let add_generation_prompt = fields.take("add_generation_prompt")?.unwrap_or(true);
    let mut sampling = Sampling::take(&mut fields, limits)?;
    sampling.params.logprobs = logprobs;

    let invalid = |error| ApiError::invalid("messages", format!("cannot be used: {error}"));
    let rendered = state.text.render_chat(&messages, add_generation_prompt);
    let ids = state
        .text
        .encode(&rendered.map_err(invalid)?, false)
        .map_err(invalid)?;
    if ids.is_empty() {
        return Err(ApiError::invalid("messages", "make an empty prompt"));
    }
    // A tokenizer may know more tokens than the model has rows.
    check_vocabulary("messages", &ids, limits)?;
    // The default is the rest of the context.
    let max_tokens = max_tokens(asked, MOST_TOKENS, ids.len(), "messages", limits)?;
    check_min_tokens(sampling.params.min_tokens, max_tokens)?;
    let ticket = lease(&model, state)?;
    let job = Job {
        prompts: vec![Prompt { ids, max_tokens }],
        sampling,
        ticket,
        arrived,
    };
    Ok((job, model))
}

/// `max_completion_tokens`, or `max_tokens` as it was called before.
fn take_max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let range = 1..=MOST_TOKENS;
    let old = fields.take_in("max_tokens", range.clone())?;
    let new = fields.take_in("max_completion_tokens", range)?;
    Ok(new.or(old))
}

/// `logprobs` turns them on, `top_logprobs` says how many alternatives.
fn take_logprobs(fields: &mut Fields, limits: &Limits) -> Result<Option<usize>, ApiError> {
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

fn take_messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let messages: Option<Vec<Map<String, Value>>> = fields.take("messages")?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "is missing"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "is empty"));
    }
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(i, message)| chat_message(&format!("messages[{i}]"), message))
        .collect()
}

fn chat_message(param: &str, mut message: Map<String, Value>) -> Result<ChatMessage, ApiError> {
    let role: String = match message.remove("role") {
        Some(role) => from_value(&format!("{param}.role"), role)?,
        None => return Err(ApiError::invalid(format!("{param}.role"), "is missing")),
    };
    let content = message.remove("content").unwrap_or_default();
    // An assistant's turn may hold tool calls instead.
    if content.is_null() && role != ASSISTANT {
        return Err(ApiError::invalid(format!("{param}.content"), "is missing"));
    }
    Ok(ChatMessage {
        role,
        content: message_text(&format!("{param}.content"), content)?,
        extra: message,
    })
}

/// A string, or a list of text parts, joined by line breaks as vLLM joins them.
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
                reason: "messages hold text only",
            });
        }
        from_value::<String>(&format!("{param}[{i}].text"), part["text"].take())
    };
    let texts: Result<Vec<_>, _> = parts.into_iter().enumerate().map(part_text).collect();
    Ok(texts?.join("\n"))
}

struct ChatChunks {
    writer: ChunkWriter,
    /// Whether a sequence's role was sent.
    begun: Vec<bool>,
    /// Present where log-probabilities were asked for.
    logprobs: Option<Arc<Text>>,
}

impl ChatChunks {
    fn chunk(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Result<Event, axum::Error> {
        self.writer.choice(ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        })
    }
}

impl Chunks for ChatChunks {
    fn of_piece(&mut self, index: usize, piece: Piece) -> Vec<Result<Event, axum::Error>> {
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = Delta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            };
            events.push(self.chunk(index, delta, None, None));
        }
        if !piece.text.is_empty() || !piece.logprobs.is_empty() {
            let delta = Delta {
                role: None,
                content: Some(piece.text),
            };
            let text = self.logprobs.as_ref();
            let logprobs = text.map(|text| ChatLogprobs::new(text, &piece.logprobs));
            events.push(self.chunk(index, delta, logprobs, None));
        }
        if let Some(finish) = piece.finish {
            let finish = Some(finish_reason(finish));
            events.push(self.chunk(index, Delta::default(), None, finish));
        }
        events
    }

    fn of_usage(&self, usage: Usage) -> Option<Result<Event, axum::Error>> {
        self.writer.usage(usage)
    }
}
