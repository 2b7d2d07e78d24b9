//! What goes into the engine and what comes out: plain data, no text, no tensors.

use std::ops::Range;

use crate::registry::Lease;

/// A generation to run: a prompt, how to sample, and the ticket to run it under.
#[derive(Debug, Default)]
pub struct Request {
    /// Token ids of the prompt; at least one, each below the vocabulary size.
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    /// The ticket that stays usable for the life of the request; `None` runs the base.
    pub ticket: Option<Lease>,
    /// Positions of the prompt whose log-probabilities are wanted: ascending disjoint ranges within
    /// `1..prompt.len()`. Position p is scored by what the model makes of the tokens before it.
    pub scored: Vec<Range<usize>>,
}

/// How tokens are chosen. The server has validated every range.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most; at least 1.
    pub max_tokens: usize,
    /// End-of-text and stop tokens are not chosen before this many tokens.
    pub min_tokens: usize,
    /// Below [`GREEDY_BELOW`] the most likely token is taken.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this share, in (0, 1].
    pub top_p: f32,
    /// Keep the most likely `k` tokens.
    pub top_k: Option<usize>,
    /// Keep tokens at least this share as likely as the likeliest, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was seen in the output.
    pub frequency_penalty: f32,
    /// Same seed, same tokens, whatever the batch; `None` draws one.
    pub seed: Option<u64>,
    /// Tokens that end the sequence besides the base's own end-of-text tokens.
    pub stop_token_ids: Vec<u32>,
    /// Run past end-of-text tokens.
    pub ignore_eos: bool,
    /// Report log-probabilities, with this many alternatives a token.
    pub logprobs: Option<usize>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Temperatures below this are greedy.
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
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            logit_bias: Vec::new(),
        }
    }
}

/// One generated token; the last one of a sequence says why it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub token: u32,
    /// Present where the request asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
    pub finish: Option<FinishReason>,
    /// In a sequence's first output, where the request asked for it: the natural logarithms of the
    /// probabilities of the prompt's tokens at the positions of [`Request::scored`], in their order,
    /// of the raw logits.
    pub prompt_logprobs: Option<Vec<f32>>,
}

/// Log-probabilities at one position, of the raw logits (before penalties and temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the chosen token's probability.
    pub chosen: f32,
    /// The likeliest tokens, best first, as many as the request asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended without a finish reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    #[error("no logit is a finite number: the ticket breaks the model")]
    NotFinite,
}

/// What the engine sends for each step of a sequence.
pub type StepResult = Result<Output, SequenceError>;

/// Why the engine ended a sequence. Stop strings are the text layer's, which drops the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text or stop token (which is the output's token).
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}
