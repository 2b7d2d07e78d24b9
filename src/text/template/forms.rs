//! What a template expects of a conversation, found out by rendering small ones.
//!
//! Published templates disagree on the form of content (text or a list of parts), of a call's
//! arguments (an object or JSON text) and of the content beside calls (empty or `none`). None of
//! that is declared anywhere; a template that gets another form fails or drops the message.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::message::{ChatMessage, ChatPrompt, tool_calls};
use super::tojson::python_json;
use crate::text::error::TextError;

/// Forms in which a template gets a conversation, and what it renders of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TemplateForms {
    /// Content is a list of parts instead of text.
    pub(super) content_parts: bool,
    /// The arguments of calls are JSON text instead of an object.
    pub(super) arguments_text: bool,
    /// Empty content beside calls is `none` instead of the empty text.
    pub(super) no_content_is_none: bool,
    /// The template renders the tools that it gets.
    pub renders_tools: bool,
    /// The template renders calls in the history.
    pub renders_calls: bool,
    /// The template renders a system message.
    pub renders_system: bool,
}

/// Most bytes that one probe may render.
pub(super) const MAX_PROBE_BYTES: usize = 1 << 16;

impl TemplateForms {
    /// Probes a template through `render`, which renders a prompt with given forms, and gives
    /// `None` if that fails.
    pub(super) fn probe(render: impl Fn(&ChatPrompt, Self) -> Option<String>) -> Self {
        let user = ChatMessage::new("user", "probed content");
        let shows = |messages: &[ChatMessage], tools: Option<&[Value]>, forms, parts: &[&str]| {
            let prompt = ChatPrompt {
                messages,
                tools,
                add_generation_prompt: true,
                ..ChatPrompt::default()
            };
            render(&prompt, forms).is_some_and(|text| parts.iter().all(|part| text.contains(part)))
        };

        let mut forms = Self::default();
        let as_parts = Self {
            content_parts: true,
            ..forms
        };
        let plain = std::slice::from_ref(&user);
        forms.content_parts = !shows(plain, None, forms, &["probed content"])
            && shows(plain, None, as_parts, &["probed content"]);

        let called = called(&user);
        let combinations = [(false, false), (false, true), (true, false), (true, true)];
        for (arguments_text, no_content_is_none) in combinations {
            let candidate = Self {
                arguments_text,
                no_content_is_none,
                ..forms
            };
            if shows(&called, None, candidate, &["probed_call", "probed value"]) {
                forms = Self {
                    renders_calls: true,
                    ..candidate
                };
                break;
            }
        }
        let tool = json!({"type": "function", "function": {
            "name": "probed_tool", "description": "A tool.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        }});
        forms.renders_tools = shows(plain, Some(&[tool]), forms, &["probed_tool"]);
        let instructed = [ChatMessage::new("system", "probed system"), user];
        forms.renders_system = shows(&instructed, None, forms, &["probed system"]);
        forms
    }

    /// The messages in these forms.
    ///
    /// # Errors
    /// A malformed tool call.
    pub(super) fn apply(self, messages: &[ChatMessage]) -> Result<Vec<Formed<'_>>, TextError> {
        let formed = messages.iter().enumerate().map(|(index, message)| {
            let mut calls = message.parsed_tool_calls(index)?;
            if self.arguments_text {
                calls.iter_mut().flatten().for_each(write_arguments);
            }
            Ok(Formed {
                message,
                calls,
                forms: self,
            })
        });
        formed.collect()
    }
}

/// A question, a call and its result. Mistral's templates require ids of nine characters.
fn called(user: &ChatMessage) -> [ChatMessage; 3] {
    let mut call = ChatMessage::new("assistant", "");
    let function = json!({"name": "probed_call", "arguments": "{\"key\": \"probed value\"}"});
    call.extra.insert(
        "tool_calls".to_owned(),
        json!([{"type": "function", "id": "probed123", "function": function}]),
    );
    let mut result = ChatMessage::new("tool", "probed result");
    for (key, value) in [("tool_call_id", "probed123"), ("name", "probed_call")] {
        result.extra.insert(key.to_owned(), value.into());
    }
    [user.clone(), call, result]
}

/// Replaces the arguments of a call by their JSON text.
fn write_arguments(call: &mut Value) {
    let function = match call.get("function") {
        Some(Value::Object(_)) => &mut call["function"],
        _ => call,
    };
    if let Some(arguments) = function.get_mut("arguments") {
        *arguments = Value::String(python_json(arguments));
    }
}

/// A message in the forms that its template expects.
pub(super) struct Formed<'a> {
    message: &'a ChatMessage,
    /// `tool_calls`, if there are any.
    calls: Option<Vec<Value>>,
    forms: TemplateForms,
}

impl Serialize for Formed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            message,
            calls,
            forms,
        } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &message.role)?;
        let calls_only = message.content.is_empty() && tool_calls(message).is_some();
        if calls_only && forms.no_content_is_none {
            map.serialize_entry("content", &())?;
        } else if forms.content_parts {
            let part = json!({"type": "text", "text": message.content});
            map.serialize_entry("content", &[part])?;
        } else {
            map.serialize_entry("content", &message.content)?;
        }
        for (key, value) in &message.extra {
            match (key.as_str(), calls) {
                ("tool_calls", Some(calls)) => map.serialize_entry(key, calls)?,
                // Templates test whether the field is present.
                ("tool_calls", None) => {}
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}
