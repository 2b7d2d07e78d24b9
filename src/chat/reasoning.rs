//! Reasoning between `<think>` and `</think>` at the start of an answer.

use std::fmt;
use std::str::FromStr;

use super::delta::{MessageDelta, push_delta};
use super::dialect::UnknownDialect;

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReasoningDialect {
    /// Not at all; or the marks stay in the content.
    #[default]
    None,
    /// The answer begins with reasoning, with `<think>` or without, up to `</think>`.
    DeepseekR1,
    /// The answer begins with reasoning if `<think>` stands there or at the end of the prompt.
    Qwen3,
}

impl ReasoningDialect {
    /// All dialects.
    pub const ALL: [Self; 3] = [Self::None, Self::DeepseekR1, Self::Qwen3];

    /// The name of vLLM's parser, or `none`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DeepseekR1 => "deepseek_r1",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The dialect that a chat template teaches.
    pub fn detect(template: &str) -> Self {
        if !template.contains("</think>") && !template.contains("<think>") {
            Self::None
        } else if template.contains("<｜Assistant｜>") {
            Self::DeepseekR1
        } else {
            Self::Qwen3
        }
    }
}

impl fmt::Display for ReasoningDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReasoningDialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        let found = Self::ALL.into_iter().find(|dialect| dialect.name() == name);
        found.ok_or_else(|| UnknownDialect {
            found: name.to_owned(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Where a rendered prompt leaves the reasoning of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// It says nothing.
    #[default]
    Neutral,
    /// Reasoning has begun.
    InReasoning,
    /// Reasoning has ended, or is switched off.
    AfterReasoning,
}

impl PromptEnd {
    /// Reads the end of a rendered prompt.
    pub fn of(prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        if prompt.ends_with(OPEN) {
            Self::InReasoning
        } else if prompt.ends_with(CLOSE) {
            Self::AfterReasoning
        } else {
            Self::Neutral
        }
    }
}

/// Splits an answer into reasoning and the rest. The marks and the white space beside them belong
/// to neither.
#[derive(Debug)]
pub(super) struct ReasoningReader {
    phase: Phase,
    /// Text that may be part of a mark.
    held: String,
    /// Whether an answer without `<think>` begins with reasoning.
    assumed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the first character other than white space.
    Before,
    /// In the reasoning, before its first character other than white space.
    Opened,
    Inside,
    /// After the reasoning, before the first character of the rest.
    Closed,
    Rest,
}

impl ReasoningReader {
    /// A reader before the first character of an answer to a prompt that ends like this.
    pub fn new(dialect: ReasoningDialect, prompt: PromptEnd) -> Self {
        let phase = match (dialect, prompt) {
            (ReasoningDialect::None, _) | (_, PromptEnd::AfterReasoning) => Phase::Rest,
            (_, PromptEnd::InReasoning) => Phase::Opened,
            (_, PromptEnd::Neutral) => Phase::Before,
        };
        Self {
            phase,
            held: String::new(),
            assumed: dialect == ReasoningDialect::DeepseekR1,
        }
    }

    /// Whether the next text belongs to the rest.
    pub fn is_past(&self) -> bool {
        self.phase == Phase::Rest
    }

    /// Takes text; adds reasoning to `deltas`, and gives the rest.
    pub fn push(&mut self, text: &str, deltas: &mut Vec<MessageDelta>) -> String {
        self.held.push_str(text);
        loop {
            match self.phase {
                Phase::Before => {
                    let start = self.held.trim_start();
                    if let Some(inside) = start.strip_prefix(OPEN) {
                        self.held = inside.to_owned();
                        self.phase = Phase::Opened;
                    } else if OPEN.starts_with(start) {
                        return String::new();
                    } else if self.assumed {
                        self.phase = Phase::Opened;
                    } else {
                        self.phase = Phase::Rest;
                    }
                }
                // Not trimmed at the end: the mark that closes may follow.
                Phase::Opened => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return String::new();
                    }
                    self.phase = Phase::Inside;
                }
                Phase::Inside => match self.held.find(CLOSE) {
                    Some(end) => {
                        add_reasoning(deltas, self.held[..end].trim_end());
                        self.held.drain(..end + CLOSE.len());
                        self.phase = Phase::Closed;
                    }
                    None => {
                        let free = before_mark(&self.held);
                        add_reasoning(deltas, &self.held[..free]);
                        self.held.drain(..free);
                        return String::new();
                    }
                },
                Phase::Closed => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return String::new();
                    }
                    self.phase = Phase::Rest;
                }
                Phase::Rest => return std::mem::take(&mut self.held),
            }
        }
    }

    /// Ends the answer; gives the rest that was held back.
    pub fn finish(&mut self, deltas: &mut Vec<MessageDelta>) -> String {
        let held = std::mem::take(&mut self.held);
        match self.phase {
            Phase::Inside => add_reasoning(deltas, &held),
            Phase::Before if self.assumed => add_reasoning(deltas, held.trim_start()),
            Phase::Before | Phase::Rest => return held,
            Phase::Opened | Phase::Closed => {}
        }
        String::new()
    }
}

fn add_reasoning(deltas: &mut Vec<MessageDelta>, text: &str) {
    if !text.is_empty() {
        push_delta(deltas, MessageDelta::Reasoning(text.to_owned()));
    }
}

/// Bytes of a text without an end that white space and the closing mark may complete.
fn before_mark(text: &str) -> usize {
    let partial = (1..CLOSE.len())
        .rev()
        .find(|&len| text.ends_with(&CLOSE[..len]))
        .unwrap_or(0);
    text[..text.len() - partial].trim_end().len()
}
