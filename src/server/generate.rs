//! Fan-out of prompts × `n` into engine sequences, and the text that comes back from each.

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;

use super::error::ApiError;
use super::meter::Meter;
use super::sampling::Sampling;
use super::state::AppState;
use crate::engine::{FinishReason, Output, OutputStream, Request, SequenceError, TokenLogprobs};
use crate::metrics::FinishedReason;
use crate::registry::Lease;
use crate::text::TextStream;

/// A validated request, ready for the engine.
pub struct GenerateRequest {
    pub prompts: Vec<Prompt>,
    pub sampling: Sampling,
    /// Lease of the requested ticket; `None` for the base.
    pub ticket: Option<Lease>,
    /// Arrival of the HTTP request.
    pub arrived: Instant,
}

/// An encoded prompt with the token limit of its completions.
pub struct Prompt {
    pub ids: Vec<u32>,
    pub max_tokens: usize,
}

/// Increment of one completion's text; [`collect`] sums them up into the whole completion.
#[derive(Debug, Default)]
pub struct TextDelta {
    pub text: String,
    /// Number of generated tokens behind the text.
    pub tokens: usize,
    /// Those tokens with their log-probabilities; empty unless requested.
    pub logprobs: Vec<(u32, TokenLogprobs)>,
    /// Set on the last delta of a completion.
    pub finish: Option<FinishReason>,
}

/// Token counts as OpenAI reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Usage {
    /// Counts each prompt once, regardless of how many completions it has.
    pub fn of_prompts(prompts: &[Prompt]) -> Self {
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Self {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens: prompt_tokens,
        }
    }

    /// Counts generated tokens.
    pub fn add(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total_tokens += tokens;
    }
}

/// Submits `n` completions per prompt to the engine, all or none. The completion at index
/// `prompt * n + choice` is that choice of that prompt.
///
/// # Errors
/// More completions than the engine's capacity, a full queue, or a stopped engine.
pub fn submit(state: &AppState, request: GenerateRequest) -> Result<Vec<Completion>, ApiError> {
    let (prompts, sampling) = (&request.prompts, &request.sampling);
    let completions = prompts.len() * sampling.n;
    let capacity = state.engine.capacity();
    if completions > capacity {
        let param = if prompts.len() > 1 { "prompt" } else { "n" };
        let problem =
            format!("requests {completions} completions; at most {capacity} are admitted at once");
        return Err(ApiError::invalid(param, problem));
    }
    let metrics = &state.metrics;
    let choices = prompts
        .iter()
        .flat_map(|prompt| (0..sampling.n as u64).map(move |choice| (prompt, choice)));
    let requests = choices
        .clone()
        .map(|(prompt, choice)| engine_request(&request, prompt, choice));
    let streams = state.engine.submit_all(requests.collect())?;
    if let Some(ticket) = &request.ticket {
        metrics.server.ticket_requested(ticket.alias());
    }
    metrics.server.request_n.observe(sampling.n as f64);
    let completion = |(outputs, (prompt, _)): (OutputStream, (&Prompt, u64))| Completion {
        outputs: Some(outputs),
        text: TextStream::new(state.text.clone(), sampling.text.clone()),
        show_stop_token: sampling.text.include_stop_str_in_output,
        meter: Meter::start(
            Arc::clone(metrics),
            request.arrived,
            prompt.ids.len(),
            prompt.max_tokens,
        ),
    };
    Ok(streams.into_iter().zip(choices).map(completion).collect())
}

/// Engine request for one choice of one prompt. Each choice has a different seed.
fn engine_request(request: &GenerateRequest, prompt: &Prompt, choice: u64) -> Request {
    let mut params = request.sampling.params.clone();
    params.max_tokens = prompt.max_tokens;
    params.seed = params.seed.map(|seed| seed.wrapping_add(choice));
    Request {
        prompt: prompt.ids.clone(),
        params,
        ticket: request.ticket.clone(),
        scored: Vec::new(),
    }
}

/// One completion while it is generated. Dropping it cancels its sequence in the engine.
pub struct Completion {
    /// `None` once the completion has ended.
    outputs: Option<OutputStream>,
    text: TextStream,
    /// Whether a stop token is part of the text.
    show_stop_token: bool,
    meter: Meter,
}

impl Completion {
    /// Waits for the next non-empty text or the end. `None` after the end.
    pub async fn next(&mut self) -> Option<Result<TextDelta, ApiError>> {
        let mut delta = TextDelta::default();
        loop {
            let output = self.outputs.as_mut()?.recv().await;
            let output = match output.ok_or(ApiError::EngineStopped) {
                Ok(Ok(output)) => output,
                Ok(Err(SequenceError::NotFinite)) => return self.fail(ApiError::BrokenTicket),
                Err(error) => return self.fail(error),
            };
            self.meter.token();
            self.append(output, &mut delta);
            if let Some(finish) = delta.finish {
                // Cancels the sequence if a stop string ended it, which the engine cannot know.
                self.outputs = None;
                self.meter.finish(match finish {
                    FinishReason::Stop => FinishedReason::Stop,
                    FinishReason::Length => FinishedReason::Length,
                });
            }
            if delta.finish.is_some() || !delta.text.is_empty() {
                return Some(Ok(delta));
            }
        }
    }

    fn fail(&mut self, error: ApiError) -> Option<Result<TextDelta, ApiError>> {
        self.outputs = None;
        Some(Err(error))
    }

    fn append(&mut self, output: Output, delta: &mut TextDelta) {
        delta.tokens += 1;
        delta
            .logprobs
            .extend(output.logprobs.map(|logprobs| (output.token, logprobs)));
        delta.finish = output.finish;
        let is_stop_token = output.finish == Some(FinishReason::Stop);
        if !is_stop_token || self.show_stop_token {
            let step = self.text.push(output.token);
            delta.text.push_str(&step.text_to_emit);
            if step.stopped.is_some() {
                delta.finish = Some(FinishReason::Stop);
                return;
            }
        }
        if output.finish.is_some() {
            let rest = self.text.finish();
            delta.text.push_str(&rest.text_to_emit);
            if rest.stopped.is_some() {
                delta.finish = Some(FinishReason::Stop);
            }
        }
    }
}

/// Deltas of all completions as they arrive, each with the index of its completion.
pub fn merge(
    completions: Vec<Completion>,
) -> impl Stream<Item = (usize, Result<TextDelta, ApiError>)> + Send + Unpin {
    let deltas = |(index, completion)| {
        stream::unfold(completion, |mut completion: Completion| async {
            let delta = completion.next().await?;
            Some((delta, completion))
        })
        .map(move |delta| (index, delta))
        .boxed()
    };
    stream::select_all(completions.into_iter().enumerate().map(deltas))
}

/// Waits for all completions and returns each as one delta that holds the whole of it.
///
/// # Errors
/// The first failure of any completion.
pub async fn collect(completions: Vec<Completion>) -> Result<Vec<TextDelta>, ApiError> {
    let mut totals: Vec<TextDelta> = completions.iter().map(|_| TextDelta::default()).collect();
    let mut deltas = merge(completions);
    while let Some((index, delta)) = deltas.next().await {
        let (delta, total) = (delta?, &mut totals[index]);
        total.text.push_str(&delta.text);
        total.tokens += delta.tokens;
        total.logprobs.extend(delta.logprobs);
        total.finish = delta.finish;
    }
    Ok(totals)
}
