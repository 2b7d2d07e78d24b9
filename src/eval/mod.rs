//! How good a base is on a data file, bare or under a ticket: the loss over what a model would learn
//! from it, and how often the greedy answer is the expected one. Everything is computed by the same
//! engine that serves, in batches; this layer knows no tensor and no HTTP.

mod choice;
mod error;
mod matching;
mod number;
mod rouge;
mod run;

pub use error::EvalError;
pub use matching::MatchRule;
pub use run::evaluate;

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// How greedy answers are compared with the expected ones; `None` computes the loss alone.
    pub answers: Option<MatchRule>,
    /// Tokens that an answer may have; at least 1.
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

/// How good a base is, bare or under one ticket.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalResult {
    /// Rows whose loss was computed.
    pub rows: usize,
    /// The tokens that the loss is the mean over.
    pub tokens: usize,
    /// −mean of the log-probabilities (natural) of all learned tokens of all rows.
    pub loss: f64,
    /// What the greedy answers were worth, where they were asked for.
    pub answers: Option<Answers>,
    /// The greedy answers themselves, in the order of the rows that have a prompt and an answer.
    pub texts: Vec<String>,
}

impl EvalResult {
    /// e to the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// What greedy answers were worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    pub rule: MatchRule,
    /// Rows that have a prompt and an answer.
    pub rows: usize,
    /// Sum of [`MatchRule::score`]: the number of matches, where the rule knows match or none.
    pub score: f64,
}

impl Answers {
    /// The mean score, from 0 to 1: the share of matches. `None` where no row has an answer.
    pub fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.score / self.rows as f64)
    }
}
