//! Hugging Face chat templates, rendered as in transformers.

mod forms;
mod functions;
mod message;
mod python;
mod source;
#[cfg(test)]
mod tests;
mod tojson;

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;

use super::error::TextError;
use super::limited::LimitedText;
use forms::MAX_PROBE_BYTES;
use functions::{Raised, raise_exception, strftime_now};
use tojson::tojson;

pub use forms::TemplateForms;
pub use message::{ChatMessage, ChatPrompt};
pub(crate) use tojson::python_json;

/// Compiled chat template with the base's special tokens as globals.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    forms: TemplateForms,
}

const NAME: &str = "chat_template";

/// Maximum size of a template's source.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// Instructions that a template may execute for one conversation: about a second. Real templates
/// need some hundreds per message.
const FUEL: u64 = 10_000_000;

/// Instructions that a template may execute for one probe of its forms.
const PROBE_FUEL: u64 = 200_000;

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are texts by role.
    ///
    /// # Errors
    /// The reason why the template does not compile.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, String> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let bytes = source.len();
            return Err(format!(
                "it has {bytes} bytes, at most {MAX_TEMPLATE_BYTES} are read"
            ));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(PROBE_FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        python::add_to(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        for (role, token) in special_tokens {
            environment.add_global(role, token);
        }
        environment
            .add_template_owned(NAME, source::rewritten(source))
            .map_err(|error| error.to_string())?;
        let mut template = Self {
            environment,
            forms: TemplateForms::default(),
        };
        template.forms = TemplateForms::probe(|prompt, forms| {
            template.render_as(prompt, forms, MAX_PROBE_BYTES).ok()
        });
        template.environment.set_fuel(Some(FUEL));
        Ok(template)
    }

    /// What the template expects and renders.
    pub fn forms(&self) -> TemplateForms {
        self.forms
    }

    /// Renders a conversation into at most `max_bytes` bytes.
    ///
    /// # Errors
    /// The template refuses or fails, does not end, or writes more; a tool call is malformed; the
    /// final message is to be continued, and the template drops its content.
    pub fn render(&self, prompt: &ChatPrompt, max_bytes: usize) -> Result<String, TextError> {
        prompt.check_kwargs()?;
        let mut text = self.render_as(prompt, self.forms, max_bytes)?;
        if prompt.continue_final_message {
            let end = end_of_final_message(&text, prompt.messages)?;
            text.truncate(end);
        }
        Ok(text)
    }

    fn render_as(
        &self,
        prompt: &ChatPrompt,
        forms: TemplateForms,
        max_bytes: usize,
    ) -> Result<String, TextError> {
        let mut text = LimitedText::new(max_bytes);
        let messages = Value::from_serialize(forms.apply(prompt.messages)?);
        let own = [
            ("messages", messages),
            // transformers passes absent ones as `none`, which templates test for.
            ("tools", Value::from_serialize(prompt.tools)),
            ("documents", Value::from_serialize(prompt.documents)),
            (
                "add_generation_prompt",
                Value::from(prompt.add_generation_prompt),
            ),
        ];
        let further = prompt.kwargs.into_iter().flat_map(Map::iter);
        let context: Value = further
            .map(|(name, value)| (name.as_str(), Value::from_serialize(value)))
            .chain(own)
            .collect();
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut text).map(drop));
        match rendered {
            Ok(()) => Ok(text.into_string()),
            Err(_) if text.is_exceeded() => Err(TextError::RenderedTooLong { max_bytes }),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(TextError::TemplateEndless(FUEL))
            }
            Err(error) => Err(match raised(&error) {
                Some(message) => TextError::TemplateRaised(message),
                None => TextError::Render(error.to_string()),
            }),
        }
    }
}

/// Where the content of the last message ends in the rendered text, as transformers finds it:
/// templates may have trimmed it.
fn end_of_final_message(text: &str, messages: &[ChatMessage]) -> Result<usize, TextError> {
    let content = messages.last().map_or("", |message| &message.content);
    let start = text
        .rfind(content.trim())
        .ok_or(TextError::FinalMessageLost)?;
    let whole = content.trim_start();
    let kept = if text[start..].starts_with(whole) {
        whole
    } else {
        content.trim()
    };
    Ok(start + kept.len())
}

/// Message of the `raise_exception` call behind an error, if there is one.
fn raised(error: &minijinja::Error) -> Option<String> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}
