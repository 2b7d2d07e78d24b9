//! What a chat means beyond its text: tools and their calls, and reasoning.
//!
//! [`Tool`] and [`ToolChoice`] are the fields of a request, validated. [`render`] renders a
//! conversation with its tools. A [`MessageParser`] reads what the model generates back into
//! reasoning, content and calls, while it streams. [`forced_call`] is the grammar of an answer that
//! always parses as a call.
//!
//! Models write calls in a few dialects ([`ToolDialect`]) and reasoning in two
//! ([`ReasoningDialect`]); both follow from the chat template. The channels of gpt-oss (harmony)
//! are not parsed: they stay content.
//!
//! A base whose template knows no tools (SmolLM2's, Gemma 3's) gets them in a system message in the
//! form of Hermes, and answers in that dialect.

mod calls;
mod delta;
mod dialect;
mod forced;
mod format;
mod json;
mod parser;
mod reasoning;
mod render;
mod schema;
#[cfg(test)]
mod tests;
mod tools;

pub use delta::MessageDelta;
pub use dialect::{ToolDialect, UnknownDialect};
pub use forced::{ForcedCall, forced_call};
pub use format::ChatFormat;
pub use parser::{MessageParser, ParserOptions};
pub use reasoning::{PromptEnd, ReasoningDialect};
pub use render::render;
pub use tools::{FieldError, MAX_TOOLS, Tool, ToolChoice, parse_tool_choice, parse_tools};
