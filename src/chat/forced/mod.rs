//! Grammars of answers that are calls, for `tool_choice: required` and named tools.

mod arguments;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use super::dialect::ToolDialect;
use super::reasoning::{PromptEnd, ReasoningDialect};
use super::tools::{Tool, ToolChoice};
use arguments::{json_schema, parameters, python_arguments, xml_parameters};

/// A grammar to write: which calls are allowed, and what may come before them.
#[derive(Clone, Copy)]
pub struct ForcedCall<'a> {
    pub tools: &'a [Tool],
    /// A named choice leaves one tool, any other all of them.
    pub choice: &'a ToolChoice,
    /// Whether there may be several calls.
    pub parallel_tool_calls: bool,
    /// Reasoning that comes before the calls, without a bound.
    pub reasoning: ReasoningDialect,
    pub prompt_end: PromptEnd,
    /// Id of the special token of a text, as from [`Text::special_token`]. Markers that are special
    /// tokens are no text to the grammar.
    ///
    /// [`Text::special_token`]: crate::text::Text::special_token
    pub special_token: &'a dyn Fn(&str) -> Option<u32>,
}

/// Grammar of an answer that calls at least one tool, in the Lark syntax of llguidance. What it
/// generates, [`MessageParser`](super::MessageParser) reads back as calls, whose arguments satisfy
/// the tool's schema. In the dialects that do not write arguments as JSON (Qwen3-Coder's and the
/// pythonic one), only declared parameters are written, and texts are bound by `enum` and `const`
/// alone in the former.
///
/// A tool that is not `strict` may have keywords in its schema that llguidance does not know; they
/// do not bind its arguments. Those of a strict tool are an error when the grammar is compiled.
pub fn forced_call(dialect: ToolDialect, options: &ForcedCall) -> String {
    let tools: Vec<&Tool> = match options.choice {
        ToolChoice::Named(name) => options.tools.iter().filter(|t| t.name == *name).collect(),
        _ => options.tools.iter().collect(),
    };
    let mut grammar = Grammar {
        dialect,
        options,
        text: String::new(),
    };
    let thought = grammar.thought();
    let calls = grammar.calls();
    let mut head = format!("start: {thought}{calls}\n");
    let names: Vec<String> = (0..tools.len())
        .map(|index| format!("call_{index}"))
        .collect();
    let _ = writeln!(head, "call: {}", names.join(" | "));
    for (index, tool) in tools.into_iter().enumerate() {
        grammar.add_call(index, tool);
    }
    head + &grammar.text
}

/// Rules so far.
struct Grammar<'a> {
    dialect: ToolDialect,
    options: &'a ForcedCall<'a>,
    text: String,
}

impl Grammar<'_> {
    /// A marker as a special token, if it is one, or as text.
    fn marker(&self, text: &str) -> String {
        match (self.options.special_token)(text) {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        }
    }

    /// Reasoning before the calls, where the parser expects it.
    fn thought(&mut self) -> &'static str {
        let prefix = match (self.options.reasoning, self.options.prompt_end) {
            (ReasoningDialect::None, _) | (_, PromptEnd::AfterReasoning) => return "",
            (ReasoningDialect::Qwen3, PromptEnd::Neutral) => "(thought_open thought \"\\n\\n\")? ",
            _ => "thought \"\\n\\n\" ",
        };
        if prefix.starts_with('(') {
            let open = self.marker("<think>");
            self.add_rule("thought_open", &open);
        }
        match (self.options.special_token)("</think>") {
            Some(id) => self.add_rule("thought", &format!("/(?s:.*)/ <[{id}]>")),
            None => self
                .text
                .push_str("thought[suffix=\"</think>\"]: /(?s:.*)/\n"),
        }
        prefix
    }

    /// The calls with what is around and between them.
    fn calls(&self) -> String {
        let (open, separator, close) = match self.dialect {
            ToolDialect::Hermes | ToolDialect::Qwen3Coder => (String::new(), "\n", ""),
            ToolDialect::Llama3Json => (String::new(), "; ", ""),
            ToolDialect::Mistral if self.has_mistral_args() => (String::new(), "", ""),
            ToolDialect::Mistral => {
                let marker = self.marker("[TOOL_CALLS]");
                (format!("{marker} {} ", literal("[")), ", ", "]")
            }
            ToolDialect::Pythonic => (format!("{} ", literal("[")), ", ", "]"),
        };
        let more = if self.options.parallel_tool_calls && separator.is_empty() {
            " call*".to_owned()
        } else if self.options.parallel_tool_calls {
            format!(" ({} call)*", literal(separator))
        } else {
            String::new()
        };
        let close = if close.is_empty() {
            String::new()
        } else {
            format!(" {}", literal(close))
        };
        format!("{open}call{more}{close}")
    }

    /// Whether the model writes `[TOOL_CALLS]f[ARGS]{...}`, as the later ones of Mistral do.
    fn has_mistral_args(&self) -> bool {
        (self.options.special_token)("[ARGS]").is_some()
    }

    fn add_call(&mut self, index: usize, tool: &Tool) {
        let name = &tool.name;
        let arguments = format!("args_{index}");
        let body = match self.dialect {
            ToolDialect::Hermes => {
                let open = self.marker("<tool_call>");
                let head = literal(&format!("\n{{\"name\": \"{name}\", \"arguments\": "));
                let close = self.marker("</tool_call>");
                format!("{open} {head} {arguments} {} {close}", literal("}\n"))
            }
            ToolDialect::Llama3Json => {
                let head = literal(&format!("{{\"name\": \"{name}\", \"parameters\": "));
                format!("{head} {arguments} {}", literal("}"))
            }
            ToolDialect::Mistral if self.has_mistral_args() => {
                let (open, mark) = (self.marker("[TOOL_CALLS]"), self.marker("[ARGS]"));
                format!("{open} {} {mark} {arguments}", literal(name))
            }
            ToolDialect::Mistral => {
                let head = literal(&format!("{{\"name\": \"{name}\", \"arguments\": "));
                format!("{head} {arguments} {}", literal("}"))
            }
            ToolDialect::Qwen3Coder => {
                let open = self.marker("<tool_call>");
                let head = literal(&format!("\n<function={name}>\n"));
                let close = self.marker("</tool_call>");
                format!(
                    "{open} {head} {arguments} {} {close}",
                    literal("</function>\n")
                )
            }
            ToolDialect::Pythonic => {
                format!(
                    "{} {arguments} {}",
                    literal(&format!("{name}(")),
                    literal(")")
                )
            }
        };
        self.add_rule(&format!("call_{index}"), &body);
        match self.dialect {
            ToolDialect::Qwen3Coder => {
                let rules = xml_parameters(&arguments, &parameters(tool));
                self.text.push_str(&rules);
            }
            ToolDialect::Pythonic => {
                let rules = python_arguments(&arguments, &parameters(tool));
                self.text.push_str(&rules);
            }
            _ => {
                let schema = json_schema(tool.parameters.clone(), tool.strict);
                self.add_rule(&arguments, &format!("%json {schema}"));
            }
        }
    }

    fn add_rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.text, "{name}: {body}");
    }
}

/// A text in a grammar.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
