//! A sequence as the engine knows it: its tokens, how they are chosen, and where they go.

use std::ops::Range;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::plan::{Chunk, Group};
use super::request::{FinishReason, Output, Request, SequenceError, StepResult};
use super::sampler::Sampler;
use super::scores::PromptScores;
use crate::kernels::sample::SamplingMethod;
use crate::registry::Lease;

/// What a step computes for a sequence.
#[derive(Debug, Default)]
pub struct ChunkOutput {
    /// A row of logits `[vocab]` for each position that the chunk scores.
    pub scored: Vec<Vec<f32>>,
    /// By what the next token is chosen; `None` where the chunk does not sample.
    pub next: Option<Next>,
}

impl ChunkOutput {
    pub fn is_empty(&self) -> bool {
        self.scored.is_empty() && self.next.is_none()
    }
}

/// By what a token is chosen.
#[derive(Debug)]
pub enum Next {
    Logits(Vec<f32>),
    /// The token, where it was chosen beside its logits; `None` where no logit is a finite number.
    Token(Option<u32>),
}

/// One stream of tokens.
pub struct Sequence {
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    /// The ticket, held until the sequence ends.
    pub lease: Option<Lease>,
    /// When the request was submitted; taken when it first runs.
    pub queued_since: Option<Instant>,
    sampler: Sampler,
    /// What is known of the prompt's own tokens; taken with the first output.
    scores: Option<PromptScores>,
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
            scores: PromptScores::new(&request.scored),
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

    /// The positions of the prompt that a chunk's logits score; each wants the row before it.
    pub fn scored_by(&self, chunk: &Chunk) -> &[usize] {
        let scores = self.scores.as_ref();
        scores.map_or(&[], |scores| scores.due(rows_of(chunk)))
    }

    /// How the next token is chosen, where nothing else of its logits is wanted.
    pub fn sampling_method(&self) -> Option<SamplingMethod> {
        self.sampler.sampling_method()
    }

    /// Takes in what came out of a chunk. Returns whether the sequence goes on.
    pub fn step(&mut self, chunk: &Chunk, mut output: ChunkOutput) -> bool {
        if let Some(scores) = &mut self.scores
            && !scores.take(rows_of(chunk), &mut output.scored, &self.tokens)
        {
            return self.fail(SequenceError::NotFinite);
        }
        output.next.is_none_or(|next| self.sample(next))
    }

    /// Chooses the next token and sends it; returns whether the sequence goes on.
    fn sample(&mut self, next: Next) -> bool {
        let sampled = match next {
            Next::Token(token) => token.map(|token| self.sampler.take(token)),
            Next::Logits(mut logits) => self.sampler.sample(&mut logits),
        };
        let Some(sampled) = sampled else {
            return self.fail(SequenceError::NotFinite);
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
            prompt_logprobs: self.scores.take().map(PromptScores::finish),
        };
        self.outputs.send(Ok(output)).is_ok() && finish.is_none()
    }

    /// Tells why the sequence ends; returns that it does not go on.
    fn fail(&self, error: SequenceError) -> bool {
        let ticket = self.lease.as_ref().map(Lease::alias);
        tracing::warn!(ticket, "a sequence ends: {error}");
        // Whoever asked may have gone.
        let _ = self.outputs.send(Err(error));
        false
    }
}

fn rows_of(chunk: &Chunk) -> Range<usize> {
    chunk.start..chunk.start + chunk.len
}
