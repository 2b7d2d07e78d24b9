//! A sequence in the engine: its tokens, its sampler and its output channel.

use std::ops::Range;
use std::time::Instant;

use super::account::Account;
use super::blocks::{BlockHash, HashChain};
use super::constraint::{ConstraintError, Guide, TokenMask};
use super::handle::{OutputSender, SendError};
use super::plan::{Chunk, Group, SequenceId};
use super::pooling::Pooled;
use super::request::{FinishReason, Output, Request, SequenceError};
use super::sampler::Sampler;
use super::scheduler::NewSequence;
use super::scores::PromptScores;
use crate::kernels::sample::SamplingMethod;
use crate::registry::Lease;

/// Output of a chunk.
#[derive(Debug)]
pub struct ChunkOutput {
    /// A row of logits `[vocab]` for each position that the chunk scores.
    pub scored: Vec<Vec<f32>>,
    /// The hidden state `[hidden]` of each position that the chunk pools.
    pub hidden: Vec<Vec<f32>>,
    /// Source of the next token; `None` if the chunk does not sample.
    pub next: Option<Next>,
}

impl ChunkOutput {
    /// Whether the chunk neither scores, pools nor samples.
    pub fn is_empty(&self) -> bool {
        self.scored.is_empty() && self.hidden.is_empty() && self.next.is_none()
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
    /// Party that it is counted for.
    account: Account,
    /// Order among the sequences of its account: lower first.
    priority: i32,
    /// Time of submission; taken when the sequence first runs.
    queued_since: Option<Instant>,
    /// Tokens of the prompt that were cached when it first ran; taken by the first output.
    cached_tokens: Option<usize>,
    sampler: Sampler,
    /// Constraint on the output; `None` if it is free.
    guide: Option<Guide>,
    /// Hashes of its blocks; `None` if it shares none.
    chain: Option<HashChain>,
    /// Scores of the prompt, if requested; taken by the first output.
    scores: Option<PromptScores>,
    /// The prompt's pooled hidden states, if they are requested instead of tokens.
    pooled: Option<Pooled>,
    /// Length in tokens at which the sequence ends.
    max_len: usize,
    outputs: OutputSender,
}

impl Sequence {
    /// A sequence that has not run yet. `ends` are the base's end-of-text tokens; the sequence ends
    /// at `max_model_len` tokens. `chain` hashes its blocks, if it shares them; `guide` holds the
    /// request's constraint.
    pub fn new(
        request: Request,
        chain: Option<HashChain>,
        guide: Option<Guide>,
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
            account: Account::of(&request),
            priority: request.priority,
            scores: PromptScores::new(&request.scored, request.scored_top),
            pooled: request
                .pooling
                .map(|pooling| Pooled::new(pooling, request.prompt.len())),
            sampler: match guide {
                Some(_) => Sampler::constrained(request.params, &request.prompt, ends),
                None => Sampler::new(request.params, &request.prompt, ends),
            },
            guide,
            tokens: request.prompt,
            lease: request.ticket,
            queued_since: Some(arrived),
            cached_tokens: None,
            chain,
            max_len: max_len.min(max_model_len),
            outputs,
        }
    }

    /// Group of the sequence: the digest of its ticket's content, or `None` for the base.
    pub fn group(&self) -> Group {
        self.lease.as_ref().map(|lease| lease.ticket().digest())
    }

    /// What the scheduler has to know of the sequence, as number `id`, before it runs.
    pub fn queued(&mut self, id: SequenceId) -> NewSequence {
        let chain = self.filled_blocks();
        let scored = self.scores.as_ref().map(PromptScores::first_row);
        let pooled = self.pooled.as_ref().map(Pooled::first_row);
        NewSequence {
            id,
            group: self.group(),
            account: self.account.clone(),
            priority: self.priority,
            tokens: self.tokens.len(),
            chain,
            needed_from: scored.into_iter().chain(pooled).min().unwrap_or(usize::MAX),
        }
    }

    /// Hashes of the blocks that the tokens have filled since the last call; none if the sequence
    /// shares no blocks.
    pub fn filled_blocks(&mut self) -> Vec<BlockHash> {
        let chain = self.chain.as_mut();
        chain.map_or(Vec::new(), |chain| chain.extend(&self.tokens))
    }

    /// Notes that the sequence runs for the first time, with the first `cached` tokens of its
    /// prompt in the cache. Returns the seconds that it has waited; `None` if it ran before.
    pub fn first_run(&mut self, cached: usize) -> Option<f64> {
        let since = self.queued_since.take()?;
        self.cached_tokens = Some(cached);
        Some(since.elapsed().as_secs_f64())
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

    /// Positions of the prompt that a chunk pools, each by its row.
    pub fn pooled_by(&self, chunk: &Chunk) -> Range<usize> {
        let pooled = self.pooled.as_ref();
        pooled.map_or(0..0, |pooled| pooled.pending(rows_of(chunk)))
    }

    /// Whether a token is sampled after a chunk.
    pub fn samples(&self, chunk: &Chunk) -> bool {
        chunk.samples && self.pooled.is_none()
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
        if let Some(pooled) = self.pooled.take_if(|pooled| pooled.record(&output.hidden)) {
            return self.send_pooled(pooled);
        }
        output.next.is_none_or(|next| self.sample(next))
    }

    /// Sends the vector of a prompt that is pooled whole. Returns whether the sequence continues,
    /// which it does not.
    fn send_pooled(&mut self, pooled: Pooled) -> bool {
        let Some(vector) = pooled.finish() else {
            return self.fail(SequenceError::NotFinite);
        };
        self.send(Output {
            token: self.tokens[self.tokens.len() - 1],
            logprobs: None,
            finish: Some(FinishReason::Length),
            prompt_logprobs: None,
            cached_tokens: None,
            pooled: Some(vector),
        })
    }

    /// Samples the next token and sends it. Returns whether the sequence continues.
    fn sample(&mut self, next: Next) -> bool {
        let allowed = match self.allowed() {
            Ok(allowed) => allowed,
            Err(error) => return self.fail(error.into()),
        };
        let sampled = match next {
            Next::Token(token) => token.map(|token| self.sampler.record(token)),
            Next::Logits(mut logits) => {
                let is_finite = logits.iter().any(|logit| logit.is_finite());
                let sampled = self.sampler.sample(&mut logits, allowed.as_ref());
                if sampled.is_none() && is_finite && allowed.is_some() {
                    // The request forbids what the constraint allows.
                    return self.fail(ConstraintError::NoTokenAllowed.into());
                }
                sampled
            }
        };
        let Some(sampled) = sampled else {
            return self.fail(SequenceError::NotFinite);
        };
        self.tokens.push(sampled.token);
        let finish = match self.finish_after(sampled.token) {
            Ok(finish) => finish,
            Err(error) => return self.fail(error.into()),
        };
        self.send(Output {
            token: sampled.token,
            logprobs: sampled.logprobs,
            finish,
            prompt_logprobs: None,
            cached_tokens: None,
            pooled: None,
        })
    }

    /// Sends an output, the first one with what is known of the prompt. Returns whether the
    /// sequence continues.
    fn send(&mut self, mut output: Output) -> bool {
        output.prompt_logprobs = self.scores.take().map(PromptScores::finish);
        output.cached_tokens = self.cached_tokens.take();
        let continues = output.finish.is_none();
        match self.outputs.send(Ok(output)) {
            Ok(()) => continues,
            Err(SendError::Closed) => false,
            Err(SendError::Unread) => {
                self.log_failure(SequenceError::Unread);
                false
            }
        }
    }

    /// Tokens that may be sampled next; `None` if the output is free.
    fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError> {
        let Some(guide) = &mut self.guide else {
            return Ok(None);
        };
        let allowed = self.sampler.allowed(guide.mask()?);
        if allowed.is_empty() {
            return Err(ConstraintError::NoTokenAllowed);
        }
        Ok(Some(allowed))
    }

    /// Reason why the sequence ends after a token, which its constraint accepts here.
    fn finish_after(&mut self, token: u32) -> Result<Option<FinishReason>, ConstraintError> {
        if self.sampler.ends_with(token) {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(guide) = &mut self.guide
            && guide.accept(token)?
        {
            return Ok(Some(FinishReason::Complete));
        }
        Ok((self.tokens.len() >= self.max_len).then_some(FinishReason::Length))
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
