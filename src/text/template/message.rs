//! A conversation and what is rendered with it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::text::error::TextError;

/// One message of a conversation, as passed to the template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, or any other role that the template knows.
    pub role: String,
    /// Text; empty if absent.
    #[serde(default)]
    pub content: String,
    /// Further fields of the message (`name`, `tool_calls`, ...), in order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A message without further fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }

    /// The `tool_calls` of message `index` with their arguments as objects, which templates expect;
    /// OpenAI's API sends them as JSON text. `None` if there are no calls.
    ///
    /// # Errors
    /// The calls are not a list, or arguments are not a JSON object.
    pub(crate) fn parsed_tool_calls(&self, index: usize) -> Result<Option<Vec<Value>>, TextError> {
        let param = format!("messages[{index}].tool_calls");
        let mut calls = match self.extra.get("tool_calls") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(calls)) if calls.is_empty() => return Ok(None),
            Some(Value::Array(calls)) => calls.clone(),
            Some(_) => {
                let problem = "must be a list".to_owned();
                return Err(TextError::ToolCall { param, problem });
            }
        };
        for (j, call) in calls.iter_mut().enumerate() {
            // Some clients send the function's fields without the wrapping `function`.
            let (function, path) = match call.get("function") {
                Some(Value::Object(_)) => (&mut call["function"], ".function"),
                _ => (call, ""),
            };
            let Some(arguments) = function.get_mut("arguments") else {
                continue;
            };
            let problem = match parsed_arguments(arguments) {
                Ok(parsed) => {
                    *arguments = parsed;
                    continue;
                }
                Err(problem) => problem,
            };
            let param = format!("{param}[{j}]{path}.arguments");
            return Err(TextError::ToolCall { param, problem });
        }
        Ok(Some(calls))
    }
}

/// Everything that a chat template renders into one prompt.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt<'a> {
    pub messages: &'a [ChatMessage],
    /// Tools in OpenAI's form; the template gets `none` if there are none.
    pub tools: Option<&'a [Value]>,
    /// Documents for retrieval; the template gets `none` if there are none.
    pub documents: Option<&'a [Value]>,
    /// Whether the prompt ends with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends where the content of the last message ends, so that the model
    /// continues it. Excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Further variables of the template: `enable_thinking`, `reasoning_effort`, ...
    pub kwargs: Option<&'a Map<String, Value>>,
}

/// Variables that [`ChatPrompt::kwargs`] cannot set.
const RESERVED: [&str; 5] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
];

impl ChatPrompt<'_> {
    /// Refuses further variables that have fields of their own.
    pub(super) fn check_kwargs(&self) -> Result<(), TextError> {
        let mut names = self.kwargs.into_iter().flat_map(Map::keys);
        match names.find(|name| RESERVED.contains(&name.as_str())) {
            Some(name) => Err(TextError::ReservedVariable(name.clone())),
            None => Ok(()),
        }
    }
}

/// The calls in a message, if it has any.
pub(super) fn tool_calls(message: &ChatMessage) -> Option<&Vec<Value>> {
    let calls = message.extra.get("tool_calls")?.as_array()?;
    (!calls.is_empty()).then_some(calls)
}

/// Arguments as an object. Empty text and null stand for no arguments.
fn parsed_arguments(arguments: &Value) -> Result<Value, String> {
    let parsed = match arguments {
        Value::Null => return Ok(Value::Object(Map::new())),
        Value::String(text) if text.trim().is_empty() => return Ok(Value::Object(Map::new())),
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| format!("must be the JSON text of an object: {error}"))?,
        other => other.clone(),
    };
    match parsed {
        Value::Object(_) => Ok(parsed),
        _ => Err("must be the JSON text of an object".to_owned()),
    }
}
