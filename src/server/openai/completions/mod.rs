//! `POST /v1/completions`

mod choice;
mod request;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use self::choice::{ChoiceWriter, CompletionChoice};
use self::request::{Answer, CompletionRequest};
use super::envelope::{Kind, done};
use super::stream_options::Streaming;
use crate::engine::FinishReason;
use crate::server::error::ApiError;
use crate::server::exchange;
use crate::server::fields::Fields;
use crate::server::generate::{TextDelta, Usage};
use crate::server::protocol::{Facts, Job, Piece, Protocol};
use crate::server::state::AppState;

const KIND: Kind = Kind {
    id_prefix: "cmpl-",
    object: "text_completion",
    chunk_object: "text_completion",
};

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    exchange::respond::<Completions>(state, request).await
}

/// State of one response.
struct Completions {
    streaming: Streaming,
    answer: Arc<Answer>,
    /// Choices that are generated per prompt.
    generated: usize,
    /// One per completion.
    writers: Vec<ChoiceWriter>,
}

impl Completions {
    /// Indices of the completions to return, in order: of each prompt the best `n`, by
    /// log-probability per token.
    fn best(&self, completions: &[TextDelta]) -> Vec<usize> {
        let all = 0..completions.len();
        let n = self.answer.n;
        if n == self.generated {
            return all.collect();
        }
        let all: Vec<usize> = all.collect();
        let by_prompt = all.chunks(self.generated);
        let best = by_prompt.flat_map(|choices| {
            let mut choices = choices.to_vec();
            let score = |&index: &usize| mean_logprob(&completions[index]);
            choices.sort_by(|a, b| score(b).total_cmp(&score(a)));
            choices.truncate(n);
            choices
        });
        best.collect()
    }
}

/// Mean log-probability of the generated tokens.
fn mean_logprob(completion: &TextDelta) -> f64 {
    let tokens = completion.logprobs.iter();
    let sum: f64 = tokens.map(|token| f64::from(token.chosen)).sum();
    sum / completion.logprobs.len().max(1) as f64
}

impl Protocol for Completions {
    fn read(fields: &mut Fields<'_>, state: &AppState) -> Result<Job<Self>, ApiError> {
        let CompletionRequest {
            prompts,
            sampling,
            streaming,
            answer,
        } = CompletionRequest::take(fields, state)?;
        let answer = Arc::new(answer);
        let writers = prompts.iter().enumerate().flat_map(|(index, prompt)| {
            let answer = &answer;
            let writer = move || ChoiceWriter::new(answer, prompt, index, &state.text);
            std::iter::repeat_with(writer).take(sampling.n)
        });
        Ok(Job {
            stream: streaming.on,
            protocol: Self {
                streaming,
                generated: sampling.n,
                writers: writers.collect(),
                answer: Arc::clone(&answer),
            },
            prompts,
            sampling,
        })
    }

    fn whole(mut self, facts: &Facts, mut completions: Vec<TextDelta>, usage: Usage) -> String {
        let best = self.best(&completions).into_iter().enumerate();
        let choices: Vec<_> = best
            .map(|(index, completion)| {
                let delta = std::mem::take(&mut completions[completion]);
                self.writers[completion].choice(index, delta)
            })
            .collect();
        KIND.whole(facts, &choices, usage)
    }

    fn delta(&mut self, facts: &Facts, index: usize, mut delta: TextDelta) -> Vec<Piece> {
        // The finish reason has a chunk of its own, without text.
        let finish = delta.finish.take();
        let choice = self.writers[index].choice(index, delta);
        let mut choices = Vec::new();
        if !is_empty(&choice) {
            choices.push(choice);
        }
        choices.extend(finish.map(|finish| last(index, finish)));
        KIND.chunks(facts, choices, self.streaming.include_usage)
    }

    fn end(&mut self, facts: &Facts, usage: Usage) -> Vec<Piece> {
        KIND.end(facts, self.streaming.include_usage.then_some(usage))
    }

    fn failure(&mut self, _facts: &Facts, error: &ApiError) -> Vec<Piece> {
        vec![Piece::json(&error.body()), done()]
    }
}

/// Whether a choice tells nothing.
fn is_empty(choice: &CompletionChoice) -> bool {
    let has_tokens = choice
        .logprobs
        .as_ref()
        .is_some_and(|lists| !lists.is_empty())
        || choice.token_ids.as_ref().is_some_and(|ids| !ids.is_empty());
    let has_prompt = choice.prompt_logprobs.is_some() || choice.prompt_token_ids.is_some();
    choice.text.is_empty() && !has_tokens && !has_prompt
}

/// The last chunk of a choice.
fn last(index: usize, finish: FinishReason) -> CompletionChoice {
    CompletionChoice {
        text: String::new(),
        index,
        logprobs: None,
        finish_reason: Some(super::envelope::finish_reason(finish)),
        prompt_logprobs: None,
        prompt_token_ids: None,
        token_ids: None,
    }
}
