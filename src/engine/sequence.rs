//! A sequence in the engine: its tokens, its sampler and its output channel.

use std::ops::Range;
use std::time::Instant;

use super::handle::{OutputSender, SendError};
use super::plan::{Chunk, Group};
use super::request::{FinishReason, Output, Request, SequenceError};
use super::sampler::Sampler;
use super::scores::PromptScores;
use crate::kernels::sample::SamplingMethod;
use crate::registry::Lease;

/// Output of a chunk.
#[derive(Debug)]
pub struct ChunkOutput {
    /// A row of logits `[vocab]` for each position that the chunk scores.
    pub scored: Vec<Vec<f32>>,
    /// Source of the next token; `None` if the chunk does not sample.
    pub next: Option<Next>,
}

impl ChunkOutput {
    /// Whether the chunk neither scores nor samples.
    pub fn is_empty(&self) -> bool {
        self.scored.is_empty() && self.next.is_none()
    }
}

/// Source of a sequence's next token.
#[derive(Debug)]
pub enum Next {
    /// Logits `[vocab]` to sample from.
    Logits(Vec<f32>),
    /// The token that the device sampled; `None` if no logit is finite.
    Token(Option<u32>),
}

/// A prompt and its continuation.
pub struct Sequence {
    /// The prompt and the generated tokens.
    pub tokens: Vec<u32>,
    /// Lease of the ticket, held until the sequence ends; `None` for the base.
    pub lease: Option<Lease>,
    /// Time of submission; taken when the sequence first runs.
    pub queued_since: Option<Instant>,
    sampler: Sampler,
    /// Scores of the prompt, if requested; taken by the first output.
    scores: Option<PromptScores>,
    /// Length in tokens at which the sequence ends.
    max_len: usize,
    outputs: OutputSender,
}

impl Sequence {
    /// A sequence that has not run yet. `ends` are the base's end-of-text tokens; the sequence ends
    /// at `max_model_len` tokens.
    pub fn new(
        request: Request,
        outputs: OutputSender,
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

    /// Group of the sequence: the digest of its ticket's content, or `None` for the base.
    pub fn group(&self) -> Group {
        self.lease.as_ref().map(|lease| lease.ticket().digest())
    }

    /// Whether the caller has dropped the output stream.
    pub fn is_cancelled(&self) -> bool {
        self.outputs.is_closed()
    }

    /// Positions of the prompt that a chunk scores, each by the row before it.
    pub fn scored_by(&self, chunk: &Chunk) -> &[usize] {
        let scores = self.scores.as_ref();
        scores.map_or(&[], |scores| scores.pending(rows_of(chunk)))
    }

    /// How the device can sample the next token; `None` if the host needs its logits.
    pub fn sampling_method(&self) -> Option<SamplingMethod> {
        self.sampler.sampling_method()
    }

    /// Processes the output of a chunk. Returns whether the sequence continues.
    pub fn step(&mut self, chunk: &Chunk, mut output: ChunkOutput) -> bool {
        if let Some(scores) = &mut self.scores
            && !scores.record(rows_of(chunk), &mut output.scored, &self.tokens)
        {
            return self.fail(SequenceError::NotFinite);
        }
        output.next.is_none_or(|next| self.sample(next))
    }

    /// Samples the next token and sends it. Returns whether the sequence continues.
    fn sample(&mut self, next: Next) -> bool {
        let sampled = match next {
            Next::Token(token) => token.map(|token| self.sampler.record(token)),
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
        match self.outputs.send(Ok(output)) {
            Ok(()) => finish.is_none(),
            Err(SendError::Closed) => false,
            Err(SendError::Unread) => {
                self.log_failure(SequenceError::Unread);
                false
            }
        }
    }

    /// Sends the error that ends the sequence. Returns false: it does not continue.
    pub fn fail(&self, error: SequenceError) -> bool {
        self.log_failure(error);
        // The caller may have dropped the stream.
        let _ = self.outputs.send(Err(error));
        false
    }

    fn log_failure(&self, error: SequenceError) {
        let ticket = self.lease.as_ref().map(Lease::alias);
        tracing::warn!(ticket, "a sequence failed: {error}");
    }
}

/// Positions of the chunk's rows.
fn rows_of(chunk: &Chunk) -> Range<usize> {
    chunk.start..chunk.start + chunk.len
}
