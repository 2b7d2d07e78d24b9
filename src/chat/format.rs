use super::dialect::ToolDialect;
use super::reasoning::ReasoningDialect;
use crate::text::Text;

/// How a base writes calls and reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    /// `None`: calls are not parsed.
    pub tools: Option<ToolDialect>,
    pub reasoning: ReasoningDialect,
}

impl ChatFormat {
    /// The format that the base's chat template teaches. A template that knows no tools gets them
    /// from [`render`](super::render) in the form of Hermes.
    pub fn detect(text: &Text) -> Self {
        let Some(template) = text.chat_template() else {
            return Self {
                tools: None,
                reasoning: ReasoningDialect::None,
            };
        };
        let tools = if text.template_forms().renders_tools {
            ToolDialect::detect(template)
        } else {
            Some(ToolDialect::Hermes)
        };
        Self {
            tools,
            reasoning: ReasoningDialect::detect(template),
        }
    }
}
