//! Requests to the engine and their outputs: plain data, no text, no tensors.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::PrefixScope;
use super::constraint::{Constraint, ConstraintError};
use super::pooling::Pooling;
use crate::access::Tenant;
use crate::registry::Lease;

/// A generation to run: a prompt, how to sample, and the ticket to run it under.
#[derive(Debug, Default)]
pub struct Request {
    /// Token ids of the prompt; at least one, each below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How tokens are sampled.
    pub params: SamplingParams,
    /// Lease of the ticket, held for the life of the request; `None` runs the base.
    pub ticket: Option<Lease>,
    /// Positions of the prompt whose log-probabilities are requested: ascending disjoint ranges
    /// within `1..prompt.len()`. The logits after the tokens before position p score position p.
    pub scored: Vec<Range<usize>>,
    /// Number of alternatives per scored position.
    pub scored_top: usize,
    /// How the prompt's hidden states are pooled, which is all that the request asks for then: no
    /// token is sampled, and the only output carries the vector.
    pub pooling: Option<Pooling>,
    /// Tenant that the request is counted for; its cached KV blocks are its own.
    pub tenant: Option<Tenant>,
    /// Order among the requests of one account: lower first, as in vLLM.
    pub priority: i32,
    /// Separates the cached KV blocks of requests further: only equal salts share them.
    pub cache_salt: Option<Arc<str>>,
    /// Constraint on the output; `None` leaves it free. The output ends when the constraint is
    /// complete.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    /// Scope within which the request shares KV blocks.
    pub(super) fn prefix_scope(&self) -> PrefixScope<'_> {
        PrefixScope {
            ticket: self.ticket.as_ref().map(|lease| lease.ticket().digest()),
            tenant: self.tenant.as_ref(),
            salt: self.cache_salt.as_deref(),
        }
    }
}

/// How tokens are sampled. The caller has validated all ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Maximum number of tokens to generate; at least 1.
    pub max_tokens: usize,
    /// Tokens before which end-of-text and stop tokens are not sampled, unless a constraint allows
    /// no other or is complete.
    pub min_tokens: usize,
    /// Sampling temperature; below [`GREEDY_BELOW`] sampling is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this share, in (0, 1].
    pub top_p: f32,
    /// Keep the most likely `k` tokens.
    pub top_k: Option<usize>,
    /// Keep tokens with at least this share of the highest probability, in [0, 1].
    pub min_p: f32,
    /// Divisor of positive and factor of negative logits of tokens seen in prompt or output; 1 is
    /// off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it was seen in the output.
    pub frequency_penalty: f32,
    /// Seed of the random numbers: the same seed gives the same tokens in any batch. `None` draws
    /// a seed.
    pub seed: Option<u64>,
    /// Tokens that end the sequence, besides the base's end-of-text tokens; shared by the choices
    /// of a request.
    pub stop_token_ids: Arc<[u32]>,
    /// Ignore the base's end-of-text tokens. Under a constraint they are sampled only if it allows
    /// no other token, and then end the sequence.
    pub ignore_eos: bool,
    /// Report log-probabilities, with this many alternatives per token.
    pub logprobs: Option<usize>,
    /// Terms added to the logits of single tokens; shared by the choices of a request.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// The only tokens that may be sampled, if any are named; ascending and distinct. End tokens
    /// are among them only if they are named.
    pub allowed_token_ids: Option<Arc<[u32]>>,
    /// Sequences of tokens that the output must not hold; none is empty.
    pub bad_words: Arc<[Vec<u32>]>,
}

/// Temperature below which sampling is greedy.
pub const GREEDY_BELOW: f32 = 1e-5;

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            stop_token_ids: Arc::default(),
            ignore_eos: false,
            logprobs: None,
            logit_bias: Arc::default(),
            allowed_token_ids: None,
            bad_words: Arc::default(),
        }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Id of the token; of a pooled request, the last token of the prompt.
    pub token: u32,
    /// Log-probabilities of the token and its alternatives, if requested.
    pub logprobs: Option<TokenLogprobs>,
    /// Reason why the sequence ends; only on its last token.
    pub finish: Option<FinishReason>,
    /// Log-probabilities of the prompt's tokens at the positions of [`Request::scored`], in their
    /// order; only on the first token, if requested.
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    /// Tokens of the prompt whose keys and values were cached; only on the first token.
    pub cached_tokens: Option<usize>,
    /// The vector `[hidden]` of a pooled request.
    pub pooled: Option<Vec<f32>>,
}

/// Log-probabilities at one position, of the raw logits (before penalties and temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability.
    pub chosen: f32,
    /// Place of the token among all by probability, from 1: one more than the number of likelier
    /// tokens.
    pub rank: usize,
    /// The most likely tokens in descending order, as many as requested.
    pub top: Vec<(u32, f32)>,
}

/// Failure of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    #[error("no logit is a finite number: the ticket breaks the model")]
    NotFinite,
    #[error("too many of its outputs were not read")]
    Unread,
    #[error("the device ran out of memory in a step")]
    OutOfMemory,
    #[error("a step failed")]
    StepFailed,
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// Output of a sequence's step: a token, or the failure that ends the sequence.
pub type StepResult = Result<Output, SequenceError>;

/// Reason why the engine ended a sequence. Stop strings belong to the text layer, which drops the
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text or stop token, which is the output's token.
    Stop,
    /// The constraint is complete. The output's token is the last of the text.
    Complete,
    /// `max_tokens` were generated, or the context is full.
    Length,
}
