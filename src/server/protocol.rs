//! What a client protocol decides: how a request is read, and how its answer is written.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::error::ApiError;
use super::fields::Fields;
use super::generate::{Prompt, TextDelta, Usage};
use super::sampling::Sampling;
use super::state::AppState;

/// A client protocol; a value writes one response.
pub trait Protocol: Send + Sized + 'static {
    /// Takes the requested model's name.
    ///
    /// # Errors
    /// The field is malformed.
    fn model(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
        fields.take("model")
    }

    /// Validates all fields but the model. Renders and encodes the prompts, so it may block.
    ///
    /// # Errors
    /// The first invalid field.
    fn read(fields: &mut Fields<'_>, state: &AppState) -> Result<Job<Self>, ApiError>;

    /// The body of a whole response, in JSON.
    fn whole(self, facts: &Facts, completions: Vec<TextDelta>, usage: Usage) -> String;

    /// Pieces of a stream before its first delta. `usage` counts the prompts.
    fn begin(&mut self, _facts: &Facts, _usage: Usage) -> Vec<Piece> {
        Vec::new()
    }

    /// Pieces for a delta of the completion at `index`.
    fn delta(&mut self, facts: &Facts, index: usize, delta: TextDelta) -> Vec<Piece>;

    /// Pieces after the last delta of all completions.
    fn end(&mut self, facts: &Facts, usage: Usage) -> Vec<Piece>;

    /// Pieces that end a stream early.
    fn failure(&mut self, facts: &Facts, error: &ApiError) -> Vec<Piece>;
}

/// A validated request, still without its ticket, and the writer of its response.
pub struct Job<P> {
    /// At least one.
    pub prompts: Vec<Prompt>,
    pub sampling: Sampling,
    /// Whether the response is streamed.
    pub stream: bool,
    pub protocol: P,
}

/// Facts that a response repeats.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Random number that the response's ids end with.
    pub number: u128,
    pub created: SystemTime,
    /// The model's name as requested.
    pub model: String,
    /// Identity of base and build: equal fingerprints and seeds give equal answers.
    pub fingerprint: Arc<str>,
}

impl Facts {
    /// Facts of a response that begins now.
    pub fn new(model: String, state: &AppState) -> Self {
        Self {
            number: rand::random(),
            created: SystemTime::now(),
            model,
            fingerprint: Arc::clone(&state.fingerprint),
        }
    }

    /// Id with this prefix.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:032x}", self.number)
    }
}

/// One message of a stream: the data of a server-sent event, one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece(pub String);

impl Piece {
    /// A message in JSON.
    pub fn json(value: &impl Serialize) -> Self {
        Self(json(value))
    }
}

/// JSON of a wire type.
///
/// # Panics
/// A map has keys that are not strings; no wire type has.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("wire types have string keys")
}
