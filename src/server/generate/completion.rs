//! One completion while it is generated.

use std::sync::Arc;

use super::{GenerateRequest, TextDelta};
use crate::engine::{FinishReason, Output, OutputStream, SequenceError};
use crate::metrics::FinishedReason;
use crate::server::error::ApiError;
use crate::server::meter::Meter;
use crate::server::quota::RequestPermit;
use crate::server::state::AppState;
use crate::text::TextStream;

/// One completion while it is generated. Dropping it cancels its sequence in the engine.
pub struct Completion {
    /// `None` once the completion has ended.
    outputs: Option<OutputStream>,
    /// Whether it is its prompt's first choice. The others share what that one computes, so only
    /// its cached tokens were cached before.
    is_first_choice: bool,
    text: TextStream,
    /// Whether the completion has no tokens: the engine's first one is dropped.
    is_empty: bool,
    /// Whether a ticket is overlaid or applied; otherwise the base alone answers.
    has_ticket: bool,
    /// Whether a stop token is part of the text.
    show_stop_token: bool,
    /// Place of its request among those of the tenant, shared by the request's completions; `None`
    /// once the completion has ended.
    permit: Option<Arc<RequestPermit>>,
    meter: Meter,
}

impl Completion {
    /// The completion at `index` of a request, whose outputs these are.
    pub fn new(
        state: &AppState,
        request: &GenerateRequest,
        index: usize,
        outputs: OutputStream,
        permit: Arc<RequestPermit>,
    ) -> Self {
        let (prompt, choice) = request.place(index);
        let options = &request.sampling.text;
        Self {
            outputs: Some(outputs),
            is_first_choice: choice == 0,
            is_empty: prompt.max_tokens == 0,
            has_ticket: request.ticket(choice).is_some(),
            text: TextStream::new(state.text.clone(), options.clone()),
            show_stop_token: options.include_stop_str_in_output,
            permit: Some(permit),
            meter: Meter::start(
                Arc::clone(&state.metrics),
                request.arrived,
                prompt.ids.len(),
                prompt.max_tokens,
            ),
        }
    }

    /// Waits for the next non-empty text or the end. `None` after the end.
    pub async fn next(&mut self) -> Option<Result<TextDelta, ApiError>> {
        let mut delta = TextDelta::default();
        loop {
            let output = self.outputs.as_mut()?.recv().await;
            let output = match output.ok_or(ApiError::EngineStopped) {
                Ok(Ok(output)) => output,
                Ok(Err(SequenceError::NotFinite)) if !self.has_ticket => {
                    return self.fail(ApiError::BrokenBase);
                }
                Ok(Err(error)) => return self.fail(error.into()),
                Err(error) => return self.fail(error),
            };
            self.append(output, &mut delta);
            if let Some(finish) = delta.finish {
                // Cancels the sequence if a stop string ended it, which the engine does not see.
                self.outputs = None;
                self.permit = None;
                self.meter.finish(match finish {
                    FinishReason::Stop | FinishReason::Complete => FinishedReason::Stop,
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
        self.permit = None;
        Some(Err(error))
    }

    fn append(&mut self, output: Output, delta: &mut TextDelta) {
        if self.is_first_choice {
            delta.cached_tokens += output.cached_tokens.unwrap_or(0);
        }
        delta.prompt_logprobs = delta.prompt_logprobs.take().or(output.prompt_logprobs);
        if self.is_empty {
            delta.finish = Some(FinishReason::Length);
            return;
        }
        self.meter.token();
        delta.ids.push(output.token);
        delta.logprobs.extend(output.logprobs);
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
