//! Reads an answer back into reasoning, content and calls while it streams.

use std::collections::VecDeque;
use std::sync::Arc;

use super::calls::{CallReader, Calls, Progress, reader};
use super::delta::{MessageDelta, push_delta};
use super::dialect::ToolDialect;
use super::reasoning::{PromptEnd, ReasoningDialect, ReasoningReader};
use super::tools::Tool;

/// How to read an answer.
#[derive(Clone, Debug)]
pub struct ParserOptions {
    /// Tools that may be called; empty if none may.
    pub tools: Arc<[Tool]>,
    /// `None`: calls stay content.
    pub dialect: Option<ToolDialect>,
    /// Whether there may be several calls. Otherwise those after the first are dropped.
    pub parallel_tool_calls: bool,
    pub reasoning: ReasoningDialect,
    /// Where the prompt leaves the reasoning.
    pub prompt_end: PromptEnd,
    /// Whether reasoning is reported. Otherwise it is dropped.
    pub include_reasoning: bool,
}

impl Default for ParserOptions {
    fn default() -> Self {
        Self {
            tools: Arc::new([]),
            dialect: None,
            parallel_tool_calls: true,
            reasoning: ReasoningDialect::None,
            prompt_end: PromptEnd::Neutral,
            include_reasoning: true,
        }
    }
}

/// Parser of one answer.
///
/// Text that is no call of a tool of the request is content, so nothing is lost except the markers
/// of reasoning and calls and the white space beside them. Part of a marker is never content while
/// it may still become one. A call is reported once its name and the start of its arguments have
/// been read; if the rest is malformed, its arguments end there, and what follows is content.
///
/// The result does not depend on how the text is cut into pieces.
#[derive(Debug)]
pub struct MessageParser {
    reasoning: ReasoningReader,
    include_reasoning: bool,
    /// `None`: everything after the reasoning is content.
    calls: Option<CallParser>,
}

impl MessageParser {
    /// A parser before the first character.
    pub fn new(options: ParserOptions) -> Self {
        let dialect = options.dialect.filter(|_| !options.tools.is_empty());
        Self {
            reasoning: ReasoningReader::new(options.reasoning, options.prompt_end),
            include_reasoning: options.include_reasoning,
            calls: dialect.map(|dialect| {
                let calls = Calls::new(dialect, options.tools, options.parallel_tool_calls);
                CallParser::new(dialect, calls)
            }),
        }
    }

    /// Takes the next text of the answer.
    pub fn push(&mut self, text: &str) -> Vec<MessageDelta> {
        let mut deltas = Vec::new();
        if self.reasoning.is_past() {
            self.push_rest(text, &mut deltas);
        } else {
            let rest = self.reasoning.push(text, &mut deltas);
            self.push_rest(&rest, &mut deltas);
        }
        self.filtered(deltas)
    }

    /// Ends the answer: gives what was held back.
    pub fn finish(&mut self) -> Vec<MessageDelta> {
        let mut deltas = Vec::new();
        let rest = self.reasoning.finish(&mut deltas);
        self.push_rest(&rest, &mut deltas);
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut deltas);
        }
        self.filtered(deltas)
    }

    /// Number of calls so far, with those that are dropped.
    pub fn calls(&self) -> usize {
        self.calls.as_ref().map_or(0, |calls| calls.calls.started())
    }

    fn push_rest(&mut self, text: &str, deltas: &mut Vec<MessageDelta>) {
        match &mut self.calls {
            Some(calls) => calls.push(text, deltas),
            None if text.is_empty() => {}
            None => push_delta(deltas, MessageDelta::Content(text.to_owned())),
        }
    }

    fn filtered(&self, mut deltas: Vec<MessageDelta>) -> Vec<MessageDelta> {
        if !self.include_reasoning {
            deltas.retain(|delta| !matches!(delta, MessageDelta::Reasoning(_)));
        }
        deltas
    }
}

/// Splits text into content and calls.
#[derive(Debug)]
struct CallParser {
    dialect: ToolDialect,
    calls: Calls,
    /// White space, and separators of calls, that are content only if content follows.
    space: String,
    /// Part of a marker.
    marker: String,
    /// Whether an opening character begins a call here: at the start and after calls.
    may_open: bool,
    reading: Option<Reading>,
}

/// Text that a marker began.
#[derive(Debug)]
struct Reading {
    reader: Box<dyn CallReader>,
    /// The text, with the marker, that is not part of a call yet.
    held: String,
    /// Number of calls before it.
    before: usize,
}

impl CallParser {
    fn new(dialect: ToolDialect, calls: Calls) -> Self {
        Self {
            dialect,
            calls,
            space: String::new(),
            marker: String::new(),
            may_open: true,
            reading: None,
        }
    }

    fn push(&mut self, text: &str, deltas: &mut Vec<MessageDelta>) {
        let mut ahead: VecDeque<char> = text.chars().collect();
        while let Some(c) = ahead.pop_front() {
            match self.reading.take() {
                Some(reading) => self.read_call(reading, c, &mut ahead, deltas),
                None => self.read_text(c, &mut ahead, deltas),
            }
        }
    }

    /// Takes a character within calls.
    fn read_call(
        &mut self,
        mut reading: Reading,
        c: char,
        ahead: &mut VecDeque<char>,
        deltas: &mut Vec<MessageDelta>,
    ) {
        let progress = reading.reader.push(c, &mut self.calls);
        let started = self.calls.started() > reading.before;
        let settled = self.calls.take_settled();
        self.calls.drain_into(deltas);
        if settled {
            self.space.clear();
        }
        match progress {
            Ok(Progress::More) => {
                if settled {
                    reading.held.clear();
                } else {
                    reading.held.push(c);
                }
                self.reading = Some(reading);
            }
            Ok(Progress::Done) if started => self.may_open = true,
            Err(_) if started => {
                self.may_open = false;
                ahead.push_front(c);
                put_back(&reading.held, ahead);
            }
            // No call at all: the first character is content, and a marker may follow it.
            Ok(Progress::Done) | Err(_) => {
                ahead.push_front(c);
                self.give_up(&reading.held, ahead, deltas);
            }
        }
    }

    /// Takes a character outside of calls.
    fn read_text(&mut self, c: char, ahead: &mut VecDeque<char>, deltas: &mut Vec<MessageDelta>) {
        let markers = self.dialect.markers();
        self.marker.push(c);
        if let Some(marker) = markers
            .iter()
            .find(|marker| marker.starts_with(&self.marker))
        {
            if marker.len() == self.marker.len() {
                self.marker.clear();
                self.begin(marker);
            }
            return;
        }
        if self.marker.len() > c.len_utf8() {
            let held = std::mem::take(&mut self.marker);
            self.give_up(&held, ahead, deltas);
            return;
        }
        self.marker.clear();
        let separates = self.dialect == ToolDialect::Llama3Json
            && c == ';'
            && self.calls.started() > 0
            && self.may_open;
        if c.is_whitespace() || separates {
            self.space.push(c);
        } else if self.may_open && self.dialect.opener() == Some(c) {
            self.begin("");
            ahead.push_front(c);
        } else {
            self.add_content(c, deltas);
        }
    }

    fn begin(&mut self, marker: &str) {
        self.reading = Some(Reading {
            reader: reader(self.dialect, marker),
            held: marker.to_owned(),
            before: self.calls.started(),
        });
    }

    /// Makes the first character of a held text content, and reads the others again.
    fn give_up(&mut self, held: &str, ahead: &mut VecDeque<char>, deltas: &mut Vec<MessageDelta>) {
        put_back(held, ahead);
        if let Some(first) = ahead.pop_front() {
            self.add_content(first, deltas);
        }
    }

    fn add_content(&mut self, c: char, deltas: &mut Vec<MessageDelta>) {
        self.may_open = false;
        let mut text = std::mem::take(&mut self.space);
        text.push(c);
        push_delta(deltas, MessageDelta::Content(text));
    }

    fn finish(&mut self, deltas: &mut Vec<MessageDelta>) {
        let mut rest = std::mem::take(&mut self.marker);
        if let Some(mut reading) = self.reading.take() {
            reading.reader.finish(&mut self.calls);
            self.calls.drain_into(deltas);
            if !self.calls.take_settled() && !reading.reader.is_between() {
                rest = reading.held;
            }
            self.may_open = true;
        }
        let space = std::mem::take(&mut self.space);
        // White space after calls is nothing.
        if !rest.is_empty() || self.calls.started() == 0 || !self.may_open {
            rest.insert_str(0, &space);
        }
        if !rest.is_empty() {
            push_delta(deltas, MessageDelta::Content(rest));
        }
    }
}

/// Puts text before what is read next.
fn put_back(text: &str, ahead: &mut VecDeque<char>) {
    for c in text.chars().rev() {
        ahead.push_front(c);
    }
}
