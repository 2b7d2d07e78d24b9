//! Evaluation of a base on a data file, bare or under a ticket: the loss on the learned tokens, and
//! how often the greedy answer matches the expected one.
//!
//! The serving engine computes everything, in batches; this layer depends on neither candle nor
//! HTTP.

mod error;
mod matching;
mod multiple_choice;
mod number;
mod rouge;
mod run;

pub use error::EvalError;
pub use matching::MatchRule;
pub use run::evaluate;

/// Options of an evaluation.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Rule that compares greedy answers with the expected ones; `None` computes only the loss.
    pub answers: Option<MatchRule>,
    /// Maximum tokens per answer; at least 1.
    pub max_tokens: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            answers: Some(MatchRule::default()),
            max_tokens: 256,
        }
    }
}

/// Result of evaluating a base, bare or under one ticket.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalResult {
    /// Rows whose loss was computed.
    pub rows: usize,
    /// Learned tokens of all rows, over which the loss is averaged.
    pub tokens: usize,
    /// Mean negative log-likelihood per learned token, in nats.
    pub loss: f64,
    /// Scores of the greedy answers, if requested.
    pub answers: Option<Answers>,
    /// The greedy answers, in the order of the rows that have a prompt and an answer.
    pub texts: Vec<String>,
}

impl EvalResult {
    /// `e^loss`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Scores of greedy answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    pub rule: MatchRule,
    /// Rows with a prompt and an answer.
    pub rows: usize,
    /// Sum of [`MatchRule::score`]: the number of matches, if [`MatchRule::is_exact`].
    pub score: f64,
}

impl Answers {
    /// The mean score, in [0, 1]: the share of matches, if the rule is exact. `None` if no row has
    /// an answer.
    pub fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.score / self.rows as f64)
    }
}
