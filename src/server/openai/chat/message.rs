//! Messages of choices in wire format.

use serde::Serialize;

use crate::chat::MessageDelta;

/// Role of every answer.
pub const ASSISTANT: &str = "assistant";

/// The message of a whole choice.
#[derive(Serialize)]
pub struct Message {
    role: &'static str,
    /// `null` if the message has nothing but calls.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A whole call of a tool.
#[derive(Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

/// The function of a call.
#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl Message {
    /// The message that these deltas make up.
    pub fn new(deltas: Vec<MessageDelta>) -> Self {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let mut tool_calls: Vec<ToolCall> = Vec::new();
        for delta in deltas {
            match delta {
                MessageDelta::Reasoning(text) => reasoning.push_str(&text),
                MessageDelta::Content(text) => content.push_str(&text),
                MessageDelta::ToolCall { id, name, .. } => tool_calls.push(ToolCall {
                    id,
                    r#type: "function",
                    function: Function {
                        name,
                        arguments: String::new(),
                    },
                }),
                MessageDelta::Arguments { index, text } => {
                    tool_calls[index].function.arguments.push_str(&text);
                }
            }
        }
        Self {
            role: ASSISTANT,
            content: (tool_calls.is_empty() || !content.is_empty()).then_some(content),
            refusal: None,
            reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
            tool_calls,
        }
    }

    /// Whether the message calls a tool.
    pub fn calls(&self) -> bool {
        !self.tool_calls.is_empty()
    }
}

/// Increment of a message in a chunk.
#[derive(Default, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta; 1]>,
}

/// Increment of a call: first its id and name, then its arguments.
#[derive(Serialize)]
struct ToolCallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Delta {
    /// The start of a message.
    pub fn start() -> Self {
        Self {
            role: Some(ASSISTANT),
            content: Some(String::new()),
            ..Self::default()
        }
    }

    /// No text, for the log-probabilities of tokens that have none yet.
    pub fn empty() -> Self {
        Self {
            content: Some(String::new()),
            ..Self::default()
        }
    }
}

impl From<MessageDelta> for Delta {
    fn from(delta: MessageDelta) -> Self {
        let call = |delta| Self {
            tool_calls: Some([delta]),
            ..Self::default()
        };
        match delta {
            MessageDelta::Reasoning(text) => Self {
                reasoning_content: Some(text),
                ..Self::default()
            },
            MessageDelta::Content(text) => Self {
                content: Some(text),
                ..Self::default()
            },
            MessageDelta::ToolCall { index, id, name } => call(ToolCallDelta {
                index,
                id: Some(id),
                r#type: Some("function"),
                function: FunctionDelta {
                    name: Some(name),
                    arguments: String::new(),
                },
            }),
            MessageDelta::Arguments { index, text } => call(ToolCallDelta {
                index,
                id: None,
                r#type: None,
                function: FunctionDelta {
                    name: None,
                    arguments: text,
                },
            }),
        }
    }
}
