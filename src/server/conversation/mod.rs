//! A conversation in OpenAI's form, whatever protocol it arrived by, and the prompt it renders to.

mod message;
mod tools;

use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::tools::Tools;
use super::error::ApiError;
use super::fields::Fields;
use super::prompt;
use super::state::AppState;
use crate::chat::{self, MessageParser, ParserOptions, PromptEnd, ReasoningDialect};
use crate::text::{ChatMessage, ChatPrompt, TextError};

/// Field that holds the messages, for errors.
pub const MESSAGES: &str = "messages";

/// A conversation to continue.
#[derive(Debug, Default)]
pub struct Conversation {
    /// At least one.
    pub messages: Vec<ChatMessage>,
    pub tools: Tools,
    /// Documents for retrieval, for templates that know them.
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
    /// Whether the rendered chat ends with the assistant's header.
    pub add_generation_prompt: bool,
    /// Whether the answer continues the last message.
    pub continue_final_message: bool,
    /// Whether reasoning is reported. Otherwise it is dropped.
    pub include_reasoning: bool,
    /// Number of tokens at its end that a longer prompt is cut to.
    pub truncation: Option<usize>,
}

/// A conversation as a prompt.
#[derive(Clone, Debug)]
pub struct ChatTokens {
    /// At least one.
    pub ids: Vec<u32>,
    /// Where the prompt leaves the reasoning of the answer.
    pub prompt_end: PromptEnd,
}

impl Conversation {
    /// Takes the fields of OpenAI's form.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn take(fields: &mut Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        let continue_final_message = fields.take("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.take("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let problem = "cannot be true beside `add_generation_prompt`";
            return Err(ApiError::invalid("continue_final_message", problem));
        }
        Ok(Self {
            messages: message::take(fields)?,
            tools: Tools::take(fields)?,
            documents: fields.take_list("documents", MAX_DOCUMENTS)?,
            kwargs: take_kwargs(fields)?,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            include_reasoning: fields.take("include_reasoning")?.unwrap_or(true),
            truncation: prompt::take_truncation(fields, state.engine.limits())?,
        })
    }

    /// Renders and encodes the conversation. Blocks.
    ///
    /// # Errors
    /// The template refuses the messages, or the prompt is too long or empty.
    pub fn encode(&self, state: &AppState) -> Result<ChatTokens, ApiError> {
        let max_bytes = match self.truncation {
            Some(_) => None,
            None => prompt::max_bytes(state),
        };
        let prompt = self.render(max_bytes, state)?;
        let ids = prompt::encode(&prompt, false, self.truncation, MESSAGES, state)?;
        if ids.is_empty() {
            return Err(ApiError::invalid(MESSAGES, "render to an empty prompt"));
        }
        Ok(ChatTokens {
            ids,
            prompt_end: PromptEnd::of(&prompt),
        })
    }

    /// How the answer is read. The text of a `constrained` answer is what the constraint says, and
    /// has no reasoning.
    pub fn parser(
        &self,
        prompt_end: PromptEnd,
        constrained: bool,
        state: &AppState,
    ) -> ParserOptions {
        ParserOptions {
            tools: Arc::clone(self.tools.callable()),
            dialect: state
                .format
                .tools
                .filter(|_| !self.tools.callable().is_empty()),
            parallel_tool_calls: self.tools.parallel,
            reasoning: match constrained {
                true => ReasoningDialect::None,
                false => state.format.reasoning,
            },
            prompt_end,
            include_reasoning: self.include_reasoning,
        }
    }

    /// Renders the conversation, up to the most bytes that the context may hold, if that is known.
    fn render(&self, max_bytes: Option<usize>, state: &AppState) -> Result<String, ApiError> {
        let tools: Vec<Value> = self
            .tools
            .callable()
            .iter()
            .map(|tool| tool.raw.clone())
            .collect();
        let prompt = ChatPrompt {
            messages: &self.messages,
            tools: (!tools.is_empty()).then_some(&tools),
            documents: self.documents.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            kwargs: Some(&self.kwargs),
        };
        let most = max_bytes.unwrap_or(usize::MAX);
        chat::render(&state.text, &prompt, most).map_err(|error| match (error, max_bytes) {
            (TextError::RenderedTooLong { max_bytes }, Some(most)) if max_bytes == most => {
                ApiError::PromptBytes {
                    limit: state.engine.limits().max_model_len,
                    max_bytes,
                    bytes: None,
                    param: MESSAGES,
                }
            }
            (TextError::ToolCall { param, problem }, _) => ApiError::invalid(param, problem),
            (error @ TextError::ReservedVariable(_), _) => {
                ApiError::invalid(KWARGS, format!("cannot be used: {error}"))
            }
            (error, _) => ApiError::invalid(MESSAGES, format!("cannot be used: {error}")),
        })
    }
}

/// Reads the answer to a conversation as a whole.
pub fn read_whole(options: ParserOptions, text: &str) -> Vec<chat::MessageDelta> {
    let mut parser = MessageParser::new(options);
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    deltas
}

const KWARGS: &str = "chat_template_kwargs";
/// Maximum number of variables of the template.
const MAX_KWARGS: usize = 64;
/// Maximum number of documents.
const MAX_DOCUMENTS: usize = 1024;

/// Takes `chat_template_kwargs`, and `reasoning_effort`, which is one of them.
fn take_kwargs(fields: &mut Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    const EFFORT: &str = "reasoning_effort";
    let kwargs = fields.take_map::<Value>(KWARGS, MAX_KWARGS)?;
    let mut kwargs: Map<String, Value> = kwargs.unwrap_or_default().into_iter().collect();
    match fields.take::<String>(EFFORT)?.as_deref() {
        None => {}
        Some(effort @ ("none" | "minimal" | "low" | "medium" | "high" | "xhigh")) => {
            kwargs.insert(EFFORT.to_owned(), effort.into());
            // The switch of Qwen's templates and others.
            if effort == "none" {
                kwargs.entry("enable_thinking").or_insert(false.into());
            }
        }
        Some(effort) => {
            let problem = format!(
                "is `{}`; expected none, minimal, low, medium, high or xhigh",
                super::fields::brief(effort.to_owned())
            );
            return Err(ApiError::invalid(EFFORT, problem));
        }
    }
    Ok(kwargs)
}
