//! Parsing of one line into a row, before tokenization.

use serde_json::{Map, Value};

use super::RowError;
use crate::text::ChatMessage;

/// Role whose messages are learned.
pub(super) const ASSISTANT: &str = "assistant";

/// The content of one line.
#[derive(Debug, PartialEq)]
pub(super) enum Row {
    /// A conversation. The assistant messages from index `learned_from` on are learned; there is at
    /// least one.
    Chat {
        messages: Vec<ChatMessage>,
        learned_from: usize,
    },
    /// A plain prompt with a non-empty completion.
    Completion { prompt: String, completion: String },
    /// A plain text.
    Text(String),
}

impl Row {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self, RowError> {
        let not_utf8 = |error: std::str::Utf8Error| RowError::NotUtf8(error.valid_up_to() + 1);
        let line = std::str::from_utf8(line).map_err(not_utf8)?;
        let row = serde_json::from_str(line).map_err(|error| RowError::NotJson(brief(&error)))?;
        let Value::Object(mut row) = row else {
            return Err(RowError::NotAnObject(kind(&row)));
        };
        row.retain(|_, value| !value.is_null());
        let has = |field: &str| row.contains_key(field);
        let forms = [
            ("messages", has("messages")),
            ("prompt", has("prompt") && has("completion")),
            ("text", has("text")),
        ];
        let mut present = forms
            .iter()
            .filter(|(_, present)| *present)
            .map(|(form, _)| *form);
        match (present.next(), present.next()) {
            (Some(one), Some(other)) => Err(RowError::SeveralForms(one, other)),
            (Some("messages"), None) => conversation(&mut row),
            (Some("text"), None) => Ok(Self::Text(string("text", row.remove("text"))?)),
            (Some(_), None) => prompt_and_completion(&mut row),
            (None, _) if has("prompt") => Err(RowError::Missing("completion".to_owned())),
            (None, _) if has("completion") => Err(RowError::Missing("prompt".to_owned())),
            (None, _) => Err(RowError::NoForm),
        }
    }
}

fn conversation(row: &mut Map<String, Value>) -> Result<Row, RowError> {
    let messages = messages("messages", row.remove("messages"))?;
    check_answered("messages", &messages)?;
    Ok(Row::Chat {
        messages,
        learned_from: 0,
    })
}

/// Parses `prompt` and `completion`: two strings, or two lists of messages.
fn prompt_and_completion(row: &mut Map<String, Value>) -> Result<Row, RowError> {
    let (prompt, completion) = (row.remove("prompt"), row.remove("completion"));
    if !prompt.as_ref().is_some_and(Value::is_array) {
        let prompt = string("prompt", prompt)?;
        let completion = string("completion", completion)?;
        if completion.trim().is_empty() {
            return Err(RowError::Empty("completion".to_owned()));
        }
        return Ok(Row::Completion { prompt, completion });
    }
    let mut all = messages("prompt", prompt)?;
    let completion = messages("completion", completion)?;
    check_answered("completion", &completion)?;
    let learned_from = all.len();
    all.extend(completion);
    Ok(Row::Chat {
        messages: all,
        learned_from,
    })
}

/// Checks that there is an assistant message to learn.
fn check_answered(field: &'static str, messages: &[ChatMessage]) -> Result<(), RowError> {
    let answer = |message: &ChatMessage| message.role == ASSISTANT;
    if messages.iter().any(answer) {
        return Ok(());
    }
    Err(RowError::NoAnswer(field))
}

fn messages(field: &str, value: Option<Value>) -> Result<Vec<ChatMessage>, RowError> {
    let expected = "a list of messages";
    let items = match value {
        Some(Value::Array(items)) => items,
        other => return Err(wrong_type(field, other.as_ref(), expected)),
    };
    let items = items.into_iter().enumerate();
    items
        .map(|(i, item)| match item {
            Value::Object(fields) => message(&format!("{field}[{i}]"), fields),
            other => {
                let expected = "a message with `role` and `content`";
                Err(wrong_type(&format!("{field}[{i}]"), Some(&other), expected))
            }
        })
        .collect()
}

fn message(field: &str, mut fields: Map<String, Value>) -> Result<ChatMessage, RowError> {
    let role = string(&format!("{field}.role"), fields.shift_remove("role"))?;
    let content = fields.shift_remove("content").filter(|c| !c.is_null());
    let calls_tools = role == ASSISTANT
        && fields
            .get("tool_calls")
            .and_then(Value::as_array)
            .is_some_and(|calls| !calls.is_empty());
    let content = match content {
        // Tool calls may replace the content.
        None if calls_tools => String::new(),
        content => string(&format!("{field}.content"), content)?,
    };
    if role == ASSISTANT && content.trim().is_empty() && !calls_tools {
        return Err(RowError::Empty(format!("{field}.content")));
    }
    Ok(ChatMessage {
        role,
        content,
        extra: fields,
    })
}

fn string(field: &str, value: Option<Value>) -> Result<String, RowError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        other => Err(wrong_type(field, other.as_ref(), "a string")),
    }
}

fn wrong_type(field: &str, found: Option<&Value>, expected: &'static str) -> RowError {
    let field = field.to_owned();
    match found {
        None => RowError::Missing(field),
        Some(found) => RowError::Type {
            field,
            found: kind(found),
            expected,
        },
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Message of a JSON error without serde's line number, which is always 1.
fn brief(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace(" at line 1 column ", " at column ")
}
