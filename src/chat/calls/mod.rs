//! Readers of calls, one per dialect, character by character.

mod expect;
mod hermes;
mod json_call;
mod llama3_json;
mod mistral;
mod python_value;
mod pythonic;
mod qwen3_coder;

use std::sync::Arc;

use super::delta::{MessageDelta, push_delta};
use super::dialect::ToolDialect;
use super::tools::Tool;

/// A text that is no call, at the character that shows it.
#[derive(Debug)]
pub(super) struct NoCall;

/// Whether the calls that a marker began go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    /// They end with the character.
    Done,
}

/// Reader of the calls after one marker. It starts a call ([`Calls::start`]) as soon as no other
/// reading of the text is likely; until then an error costs nothing, since all text becomes
/// content. After an error the reader is not used again.
pub(super) trait CallReader: std::fmt::Debug + Send {
    /// Takes a character.
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall>;

    /// Ends the text within a call: writes what was held back.
    fn finish(&mut self, _calls: &mut Calls) {}

    /// Whether the text since the last call only separates or closes.
    fn is_between(&self) -> bool {
        false
    }
}

/// A reader of what follows `marker`, which is empty after an opening character.
pub(super) fn reader(dialect: ToolDialect, marker: &str) -> Box<dyn CallReader> {
    match dialect {
        ToolDialect::Hermes => Box::new(hermes::Hermes::new()),
        ToolDialect::Llama3Json => Box::new(llama3_json::Llama3Json::new()),
        ToolDialect::Mistral => Box::new(mistral::Mistral::new()),
        ToolDialect::Qwen3Coder => Box::new(qwen3_coder::Qwen3Coder::new(marker)),
        ToolDialect::Pythonic => Box::new(pythonic::Pythonic::new()),
    }
}

/// The calls of an answer so far.
#[derive(Debug)]
pub(super) struct Calls {
    dialect: ToolDialect,
    tools: Arc<[Tool]>,
    /// Whether there may be more than one; calls after the first are read and dropped otherwise.
    parallel: bool,
    started: usize,
    /// Whether the text so far is accounted for, since [`Calls::take_settled`].
    settled: bool,
    deltas: Vec<MessageDelta>,
}

impl Calls {
    /// An answer without calls so far.
    pub fn new(dialect: ToolDialect, tools: Arc<[Tool]>, parallel: bool) -> Self {
        Self {
            dialect,
            tools,
            parallel,
            started: 0,
            settled: false,
            deltas: Vec::new(),
        }
    }

    /// Number of calls that were started.
    pub fn started(&self) -> usize {
        self.started
    }

    /// Moves the deltas since the last time to `deltas`.
    pub fn drain_into(&mut self, deltas: &mut Vec<MessageDelta>) {
        for delta in self.deltas.drain(..) {
            push_delta(deltas, delta);
        }
    }

    /// Whether the text was accounted for since the last time: as part of a call.
    pub fn take_settled(&mut self) -> bool {
        std::mem::take(&mut self.settled)
    }

    /// Notes that the text so far is part of calls.
    fn settle(&mut self) {
        self.settled = true;
    }

    /// The tool of this name.
    ///
    /// # Errors
    /// The request has none: the text is no call.
    fn tool(&self, name: &str) -> Result<&Tool, NoCall> {
        self.tools
            .iter()
            .find(|tool| tool.name == name)
            .ok_or(NoCall)
    }

    /// Starts the next call, of a known tool.
    fn start(&mut self, name: &str) {
        let index = self.started;
        self.started += 1;
        self.settle();
        if !self.is_dropped() {
            let id = self.dialect.call_id();
            let name = name.to_owned();
            self.deltas.push(MessageDelta::ToolCall { index, id, name });
        }
    }

    /// Adds to the arguments of the call that was started last.
    fn arguments(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.settle();
        if !self.is_dropped() {
            let index = self.started.saturating_sub(1);
            let text = text.to_owned();
            push_delta(&mut self.deltas, MessageDelta::Arguments { index, text });
        }
    }

    fn is_dropped(&self) -> bool {
        self.started > 1 && !self.parallel
    }
}
