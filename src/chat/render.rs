//! Prompts with tools, for templates that know tools and for those that do not.

use serde_json::{Value, json};

use crate::text::{ChatMessage, ChatPrompt, Text, TextError, python_json};

/// Renders a conversation with its tools into one prompt of at most `max_bytes` bytes.
///
/// A template that knows no tools gets them in a system message, calls in the content of the
/// assistant's messages, and results in messages of the user, all in the form of Hermes. If it
/// knows no system message either, the tools stand before the first message.
///
/// # Errors
/// Those of [`Text::render_prompt`].
pub fn render(text: &Text, prompt: &ChatPrompt, max_bytes: usize) -> Result<String, TextError> {
    let forms = text.template_forms();
    let tools = prompt.tools.filter(|tools| !tools.is_empty());
    let has_calls = prompt.messages.iter().any(is_of_tools);
    let lacking = (tools.is_some() && !forms.renders_tools) || (has_calls && !forms.renders_calls);
    if !lacking || !text.has_chat_template() {
        let prompt = ChatPrompt {
            tools,
            ..prompt.clone()
        };
        return text.render_prompt(&prompt, max_bytes);
    }
    let mut messages = plain_messages(prompt.messages)?;
    if let Some(tools) = tools {
        instruct(&mut messages, tools, forms.renders_system);
    }
    let prompt = ChatPrompt {
        messages: &messages,
        tools: None,
        ..prompt.clone()
    };
    text.render_prompt(&prompt, max_bytes)
}

fn is_of_tools(message: &ChatMessage) -> bool {
    message.role == "tool" || message.extra.contains_key("tool_calls")
}

/// Puts the description of the tools first.
fn instruct(messages: &mut Vec<ChatMessage>, tools: &[Value], as_system: bool) {
    let description = description(tools);
    let into_first = match messages.first() {
        Some(first) if as_system => matches!(&*first.role, "system" | "developer"),
        Some(_) => true,
        None => false,
    };
    if into_first {
        let content = &mut messages[0].content;
        *content = if as_system {
            format!("{content}\n\n{description}")
        } else {
            format!("{description}\n\n{content}")
        };
    } else {
        messages.insert(0, ChatMessage::new("system", description));
    }
}

/// The words of Qwen's and Hermes's templates.
fn description(tools: &[Value]) -> String {
    let signatures: String = tools
        .iter()
        .map(|tool| format!("\n{}", python_json(tool)))
        .collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are \
         provided with function signatures within <tools></tools> XML tags:\n<tools>{signatures}\n\
         </tools>\n\nFor each function call, return a json object with function name and arguments \
         within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": <function-name>, \
         \"arguments\": <args-json-object>}}\n</tool_call>"
    )
}

/// The messages with calls and results as text.
fn plain_messages(messages: &[ChatMessage]) -> Result<Vec<ChatMessage>, TextError> {
    let mut plain: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for (index, message) in messages.iter().enumerate() {
        let is_result = message.role == "tool";
        if is_result {
            let result = format!("<tool_response>\n{}\n</tool_response>", message.content);
            match plain.last_mut().filter(|_| after_result) {
                Some(last) => last.content = format!("{}\n{result}", last.content),
                None => plain.push(ChatMessage::new("user", result)),
            }
        } else {
            plain.push(plain_message(message, index)?);
        }
        after_result = is_result;
    }
    Ok(plain)
}

fn plain_message(message: &ChatMessage, index: usize) -> Result<ChatMessage, TextError> {
    let calls = message.parsed_tool_calls(index)?.unwrap_or_default();
    let mut plain = message.clone();
    plain.extra.remove("tool_calls");
    for call in &calls {
        let function = call.get("function").unwrap_or(call);
        let arguments = function.get("arguments").cloned();
        let object = json!({
            "name": function.get("name"),
            "arguments": arguments.unwrap_or_else(|| json!({})),
        });
        let separator = if plain.content.is_empty() { "" } else { "\n" };
        let call = format!(
            "{separator}<tool_call>\n{}\n</tool_call>",
            python_json(&object)
        );
        plain.content.push_str(&call);
    }
    Ok(plain)
}
