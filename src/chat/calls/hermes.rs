use super::expect::Expect;
use super::json_call::JsonCall;
use super::{CallReader, Calls, NoCall, Progress};

/// Reader of `{"name": "f", "arguments": {...}}</tool_call>`, after `<tool_call>`.
#[derive(Debug)]
pub(super) enum Hermes {
    Call(JsonCall),
    Close(Expect),
}

impl Hermes {
    /// A reader after the marker.
    pub fn new() -> Self {
        Self::Call(JsonCall::new())
    }
}

impl CallReader for Hermes {
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        match self {
            Self::Call(call) => {
                if call.push(c, calls)? == Progress::Done {
                    *self = Self::Close(Expect::new(&["</tool_call>"]));
                }
                Ok(Progress::More)
            }
            Self::Close(close) => Ok(match close.push(c)? {
                Some(_) => Progress::Done,
                None => Progress::More,
            }),
        }
    }

    fn is_between(&self) -> bool {
        matches!(self, Self::Close(_))
    }
}
