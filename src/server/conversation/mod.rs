//! A conversation in OpenAI's form, whatever protocol it arrived by, and the prompt it renders to.

mod message;

use super::error::ApiError;
use super::fields::Fields;
use super::prompt;
use super::state::AppState;
use crate::text::{ChatMessage, TextError};

/// Field that holds the messages, for errors.
pub const MESSAGES: &str = "messages";

/// A conversation to continue.
#[derive(Debug)]
pub struct Conversation {
    /// At least one.
    pub messages: Vec<ChatMessage>,
    /// Whether the rendered chat ends with the assistant's header.
    pub add_generation_prompt: bool,
    /// Number of tokens at its end that a longer prompt is cut to.
    pub truncation: Option<usize>,
}

impl Conversation {
    /// Takes the fields of OpenAI's form.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn take(fields: &mut Fields<'_>, state: &AppState) -> Result<Self, ApiError> {
        Ok(Self {
            messages: message::take(fields)?,
            truncation: prompt::take_truncation(fields, state.engine.limits())?,
            add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
        })
    }

    /// Token ids of the rendered conversation. Blocks.
    ///
    /// # Errors
    /// The template refuses the messages, or the prompt is too long or empty.
    pub fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        let max_bytes = match self.truncation {
            Some(_) => None,
            None => prompt::max_bytes(state),
        };
        let prompt = self.render(max_bytes, state)?;
        let ids = prompt::encode(&prompt, false, self.truncation, MESSAGES, state)?;
        if ids.is_empty() {
            return Err(ApiError::invalid(MESSAGES, "render to an empty prompt"));
        }
        Ok(ids)
    }

    /// Renders the conversation, up to the most bytes that the context may hold, if that is known.
    fn render(&self, max_bytes: Option<usize>, state: &AppState) -> Result<String, ApiError> {
        let most = max_bytes.unwrap_or(usize::MAX);
        let prompt =
            state
                .text
                .render_chat_within(&self.messages, self.add_generation_prompt, most);
        prompt.map_err(|error| match (error, max_bytes) {
            (TextError::RenderedTooLong { max_bytes }, Some(most)) if max_bytes == most => {
                ApiError::PromptBytes {
                    limit: state.engine.limits().max_model_len,
                    max_bytes,
                    bytes: None,
                    param: MESSAGES,
                }
            }
            (error, _) => ApiError::invalid(MESSAGES, format!("cannot be used: {error}")),
        })
    }
}
