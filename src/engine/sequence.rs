//! A sequence as the engine knows it: its tokens, how they are chosen, and where they go.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::request::{FinishReason, Output, Request, SequenceError, StepResult};
use super::sampler::Sampler;
use super::scheduler::Group;
use crate::registry::Lease;

/// One stream of tokens.
pub struct Sequence {
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    /// The ticket, held until the sequence ends.
    pub lease: Option<Lease>,
    /// When the request was submitted; taken when it first runs.
    pub queued_since: Option<Instant>,
    sampler: Sampler,
    /// The length at which the sequence ends.
    max_len: usize,
    outputs: UnboundedSender<StepResult>,
}

impl Sequence {
    /// `ends` are the base's end-of-text tokens; no sequence grows beyond `max_model_len` tokens.
    pub fn new(
        request: Request,
        outputs: UnboundedSender<StepResult>,
        arrived: Instant,
        ends: &[u32],
        max_model_len: usize,
    ) -> Self {
        let max_len = request
            .prompt
            .len()
            .saturating_add(request.params.max_tokens);
        Self {
            sampler: Sampler::new(request.params, &request.prompt, ends),
            tokens: request.prompt,
            lease: request.ticket,
            queued_since: Some(arrived),
            max_len: max_len.min(max_model_len),
            outputs,
        }
    }

    /// What it shares a step with: sequences under the same content of a ticket.
    pub fn group(&self) -> Group {
        self.lease.as_ref().map(|lease| lease.ticket().digest())
    }

    /// Nobody listens any more.
    pub fn is_cancelled(&self) -> bool {
        self.outputs.is_closed()
    }

    /// Chooses the next token by its logits and sends it; returns whether the sequence goes on.
    pub fn step(&mut self, logits: &mut [f32]) -> bool {
        let Some(sampled) = self.sampler.sample(logits) else {
            tracing::warn!(
                ticket = self.lease.as_ref().map(Lease::alias),
                "a sequence ends: {}",
                SequenceError::NotFinite
            );
            // Whoever asked may have gone.
            let _ = self.outputs.send(Err(SequenceError::NotFinite));
            return false;
        };
        self.tokens.push(sampled.token);
        let finish = if self.sampler.ends_with(sampled.token) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        };
        let output = Output {
            token: sampled.token,
            logprobs: sampled.logprobs,
            finish,
        };
        self.outputs.send(Ok(output)).is_ok() && finish.is_none()
    }
}
