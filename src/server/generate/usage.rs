//! Token counts of a response.

use serde::Serialize;

use super::{Prompt, TextDelta};

/// Token counts as OpenAI reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Parts of the prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens whose keys and values were cached before the request.
    pub cached_tokens: usize,
}

impl Usage {
    /// Counts each prompt once, regardless of how many completions it has.
    pub fn of_prompts(prompts: &[Prompt]) -> Self {
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens,
            ..Self::default()
        }
    }

    /// Counts the tokens of a delta.
    pub fn add(&mut self, delta: &TextDelta) {
        self.completion_tokens += delta.ids.len();
        self.total_tokens += delta.ids.len();
        self.prompt_tokens_details.cached_tokens += delta.cached_tokens;
    }
}
