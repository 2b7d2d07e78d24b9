//! Choices of a completion in wire format.

use std::sync::Arc;

use serde::Serialize;

use super::request::Answer;
use crate::engine::TokenLogprobs;
use crate::server::generate::{Prompt, TextDelta};
use crate::server::openai::envelope::finish_reason;
use crate::server::openai::logprobs::{
    CompletionLogprobs, PromptLogprobs, TextOffsets, TokenSpelling,
};
use crate::text::Text;

/// One choice of a response or of a chunk.
#[derive(Serialize)]
pub struct CompletionChoice {
    pub text: String,
    pub index: usize,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Writer of one prompt's choices.
pub struct ChoiceWriter {
    answer: Arc<Answer>,
    spelling: TokenSpelling,
    prompt: Arc<[u32]>,
    /// Text of the prompt, if the choice begins with it.
    echo: Option<String>,
    offsets: TextOffsets,
    /// Whether the prompt was written.
    begun: bool,
}

impl ChoiceWriter {
    /// Writer of a choice of the prompt at `index` of the request.
    pub fn new(answer: &Arc<Answer>, prompt: &Prompt, index: usize, text: &Arc<Text>) -> Self {
        let spelling = TokenSpelling::new(Arc::clone(text), answer.tokens_as_ids);
        Self {
            answer: Arc::clone(answer),
            offsets: TextOffsets::new(spelling.clone()),
            spelling,
            prompt: prompt.ids.as_slice().into(),
            echo: answer.echo.as_ref().map(|texts| texts[index].clone()),
            begun: false,
        }
    }

    /// The next delta as a choice; the first one begins with the prompt, if that is shown.
    pub fn choice(&mut self, index: usize, mut delta: TextDelta) -> CompletionChoice {
        let is_first = !std::mem::replace(&mut self.begun, true);
        let scores = delta.prompt_logprobs.take();
        let echo = self.echo.take();
        let mut logprobs = self.answer.logprobs.then(CompletionLogprobs::default);
        if let Some(lists) = &mut logprobs {
            if is_first && self.answer.echo.is_some() {
                self.offsets
                    .push_prompt(&self.prompt, scores.as_deref().unwrap_or(&[]), lists);
            }
            for (id, scored) in delta.scored_tokens() {
                self.offsets.push(id, Some(scored), lists);
            }
        }
        let shown = |on: bool, ids: Vec<u32>| on.then_some(ids);
        let token_ids = self.answer.token_ids;
        CompletionChoice {
            text: echo.unwrap_or_default() + &delta.text,
            index,
            logprobs,
            finish_reason: delta.finish.map(finish_reason),
            prompt_logprobs: self.prompt_logprobs(is_first, scores.as_deref()),
            prompt_token_ids: shown(is_first && token_ids, self.prompt.to_vec()),
            token_ids: shown(token_ids, delta.ids),
        }
    }

    fn prompt_logprobs(
        &self,
        is_first: bool,
        scores: Option<&[TokenLogprobs]>,
    ) -> Option<PromptLogprobs> {
        let shown = is_first && self.answer.prompt_logprobs;
        shown.then(|| PromptLogprobs::new(&self.spelling, &self.prompt, scores.unwrap_or(&[])))
    }
}
