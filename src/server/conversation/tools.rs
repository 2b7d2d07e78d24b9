//! The tools of a conversation.

use std::sync::Arc;

use serde_json::Value;

use crate::chat::{FieldError, Tool, ToolChoice, parse_tool_choice, parse_tools};
use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// Tools that the model may call, and whether it must.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Empty if none may be called: then the prompt has none either.
    callable: Arc<[Tool]>,
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            callable: Arc::new([]),
            choice: ToolChoice::Auto,
            parallel: true,
        }
    }
}

impl Tools {
    /// Takes the fields of OpenAI's form.
    ///
    /// # Errors
    /// The first malformed field.
    pub fn take(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        let tools: Value = fields.take("tools")?.unwrap_or_default();
        let tools = parse_tools(tools)?;
        let choice: Value = fields.take("tool_choice")?.unwrap_or_default();
        let choice = parse_tool_choice(choice, &tools)?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        Ok(Self::new(tools, choice, parallel))
    }

    /// These tools under a choice. `parallel` says whether an answer may have several calls.
    pub fn new(tools: Vec<Tool>, choice: ToolChoice, parallel: bool) -> Self {
        let callable = match choice {
            ToolChoice::None => Vec::new(),
            _ => tools,
        };
        Self {
            callable: callable.into(),
            choice,
            parallel,
        }
    }

    /// The tools that may be called.
    pub fn callable(&self) -> &Arc<[Tool]> {
        &self.callable
    }

    /// Whether the answer must call one.
    pub fn are_forced(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }
}

impl From<FieldError> for ApiError {
    fn from(FieldError { param, problem }: FieldError) -> Self {
        Self::invalid(param, problem)
    }
}
