use super::json_call::JsonCall;
use super::{CallReader, Calls, NoCall, Progress};

/// Reader of `{"name": "f", "parameters": {...}}`.
#[derive(Debug)]
pub(super) struct Llama3Json(JsonCall);

impl Llama3Json {
    /// A reader before the opening brace.
    pub fn new() -> Self {
        Self(JsonCall::new())
    }
}

impl CallReader for Llama3Json {
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        self.0.push(c, calls)
    }
}
