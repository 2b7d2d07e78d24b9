//! Messages of a conversation.

use serde_json::{Map, Value};

use super::MESSAGES;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, from_value};
use crate::text::ChatMessage;

const ASSISTANT: &str = "assistant";
/// Maximum number of messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Takes the messages.
///
/// # Errors
/// There are none or too many, or one is malformed.
pub fn take(fields: &mut Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
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
