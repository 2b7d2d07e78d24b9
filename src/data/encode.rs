//! Encoding of rows into token ids, with the chat template and tokenizer that serve requests.

use std::iter::once;
use std::ops::Range;

use super::row::{ASSISTANT, Row};
use super::{DataOptions, Example, RowError};
use crate::text::{ChatMessage, Text};

/// Encodes the rows of one file.
pub(super) struct Encoder<'a> {
    text: &'a Text,
    max_length: usize,
    end_token: u32,
    /// All tokens that end a text or a turn.
    ends: Vec<u32>,
}

impl<'a> Encoder<'a> {
    /// An encoder with the tokenizer and the limits of `options`.
    pub fn new(text: &'a Text, options: &DataOptions) -> Self {
        let mut ends = text.eos_token_ids().to_vec();
        ends.push(options.end_token);
        Self {
            text,
            max_length: options.max_length,
            end_token: options.end_token,
            ends,
        }
    }

    /// Encodes a row; returns the example and whether it was cut. If the cut leaves no learned
    /// token, `learned` is empty.
    pub fn example(&self, line: usize, row: &Row) -> Result<(Example, bool), RowError> {
        let encoded = match row {
            Row::Chat {
                messages,
                learned_from,
            } => self.chat(messages, *learned_from),
            Row::Completion { prompt, completion } => self.completion(prompt, completion),
            Row::Text(text) => self.plain(text),
        };
        let Encoded {
            mut tokens,
            mut learned,
            mut answers,
        } = encoded?;
        tokens.truncate(learned.last().map_or(0, |last| last.end));
        let cut = tokens.len() > self.max_length;
        tokens.truncate(self.max_length);
        learned.retain(|range| range.start < tokens.len());
        if let Some(last) = learned.last_mut() {
            last.end = last.end.min(tokens.len());
        }
        answers.truncate(learned.len());
        let example = Example {
            line,
            tokens,
            learned,
            answer: answers.pop(),
        };
        Ok((example, cut))
    }

    /// Encodes a conversation. The assistant messages from index `learned_from` on are learned,
    /// each after the prompt that a request would render to.
    fn chat(&self, messages: &[ChatMessage], learned_from: usize) -> Result<Encoded, RowError> {
        let turns: Vec<usize> = (learned_from..messages.len())
            .filter(|&i| messages[i].role == ASSISTANT)
            .collect();
        let until = turns.last().map_or(0, |last| last + 1);
        let whole = self.text.render_chat(&messages[..until], false)?;
        let starts = turns.iter().map(|&i| self.prompt_end(&whole, messages, i));
        let starts = starts.collect::<Result<Vec<_>, _>>()?;
        let mut encoder = IncrementalEncoder::new(self.text, &whole, false);
        let mut encoded = Encoded::default();
        for (turn, &i) in turns.iter().enumerate() {
            let start = starts[turn];
            if start < encoder.bytes {
                return Err(RowError::NotTurnByTurn(i + 1));
            }
            encoder.extend(start)?;
            let learned_from = encoder.tokens.len();
            let next = starts.get(turn + 1).copied();
            let (end, is_exact) = self.answer_end(&whole, messages, i, next)?;
            encoder.extend(end.max(start))?;
            let answer = &encoder.tokens[learned_from..];
            let ends_at = answer.iter().position(|id| self.ends.contains(id));
            let len = match ends_at {
                Some(at) => at + 1,
                None if is_exact => answer.len(),
                None => return Err(RowError::NotTurnByTurn(i + 1)),
            };
            if len == 0 {
                return Err(RowError::NothingRendered(i + 1));
            }
            encoded
                .answers
                .push(self.answer(&messages[i], &answer[..len])?);
            encoded.learned.push(learned_from..learned_from + len);
        }
        encoded.tokens = encoder.tokens;
        Ok(encoded)
    }

    /// Byte of `whole` at which the prompt of message `i` ends. The prompt includes the generation
    /// prompt, unless the template writes a different one before an existing answer.
    fn prompt_end(
        &self,
        whole: &str,
        messages: &[ChatMessage],
        i: usize,
    ) -> Result<usize, RowError> {
        if i == 0 {
            return Err(RowError::NoPrompt(1));
        }
        for add_generation_prompt in [true, false] {
            let prompt = self
                .text
                .render_chat(&messages[..i], add_generation_prompt)?;
            if whole.starts_with(&prompt) {
                return match prompt.len() {
                    0 => Err(RowError::NoPrompt(i + 1)),
                    end => Ok(end),
                };
            }
        }
        Err(RowError::NotTurnByTurn(i + 1))
    }

    /// Byte of `whole` at which answer `i` ends, and whether it is exact. It is inexact if the
    /// template ends a conversation differently from a turn: then the first end token before the
    /// next learned answer marks the end.
    fn answer_end(
        &self,
        whole: &str,
        messages: &[ChatMessage],
        i: usize,
        next_start: Option<usize>,
    ) -> Result<(usize, bool), RowError> {
        let Some(next_start) = next_start else {
            return Ok((whole.len(), true));
        };
        let so_far = self.text.render_chat(&messages[..=i], false)?;
        let is_exact = so_far.len() <= next_start && whole.starts_with(&so_far);
        Ok(if is_exact {
            (so_far.len(), true)
        } else {
            (next_start, false)
        })
    }

    /// Text of an answer: its content, or the rendered tool calls if it has no content.
    fn answer(&self, message: &ChatMessage, tokens: &[u32]) -> Result<String, RowError> {
        if message.content.is_empty() {
            return Ok(self.text.decode(tokens, true)?);
        }
        Ok(message.content.clone())
    }

    /// Encodes a plain prompt, as the completions endpoint does, and its completion.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded, RowError> {
        let whole = [prompt, completion].concat();
        let mut encoder = IncrementalEncoder::new(self.text, &whole, true);
        encoder.extend(prompt.len())?;
        let start = encoder.tokens.len();
        if start == 0 {
            return Err(RowError::Empty("prompt".to_owned()));
        }
        encoder.extend(whole.len())?;
        let tokens = self.ended(encoder.tokens, start);
        Ok(Encoded {
            learned: once(start..tokens.len()).collect(),
            tokens,
            answers: vec![completion.to_owned()],
        })
    }

    fn plain(&self, text: &str) -> Result<Encoded, RowError> {
        let empty = || RowError::Empty("text".to_owned());
        if self.text.encode(text, false)?.is_empty() {
            return Err(empty());
        }
        let tokens = self.ended(self.text.encode(text, true)?, 0);
        // A lone end token has nothing to learn.
        if tokens.len() < 2 {
            return Err(empty());
        }
        Ok(Encoded {
            learned: once(1..tokens.len()).collect(),
            tokens,
            answers: Vec::new(),
        })
    }

    /// Appends the end token, unless the tokens from `start` on already end with one.
    fn ended(&self, mut tokens: Vec<u32>, start: usize) -> Vec<u32> {
        let last = tokens[start..].last();
        if last.is_none_or(|last| !self.ends.contains(last)) {
            tokens.push(self.end_token);
        }
        tokens
    }
}

/// A row before it is cut.
#[derive(Default)]
struct Encoded {
    tokens: Vec<u32>,
    learned: Vec<Range<usize>>,
    /// One per learned range; empty for a plain text.
    answers: Vec<String>,
}

/// Encodes a text piece by piece from its beginning, without changing the tokens of earlier pieces.
struct IncrementalEncoder<'a> {
    text: &'a Text,
    whole: &'a str,
    /// Whether the tokenizer adds special tokens, as it does for a plain prompt.
    add_special_tokens: bool,
    tokens: Vec<u32>,
    /// Bytes of `whole` that `tokens` encode.
    bytes: usize,
}

impl<'a> IncrementalEncoder<'a> {
    fn new(text: &'a Text, whole: &'a str, add_special_tokens: bool) -> Self {
        Self {
            text,
            whole,
            add_special_tokens,
            tokens: Vec::new(),
            bytes: 0,
        }
    }

    /// Extends the tokens to byte `end`. If the encoding of the text up to `end` begins with the
    /// current tokens, it is taken; otherwise a token would cross the seam, which serving cannot
    /// produce, so the rest is encoded alone.
    fn extend(&mut self, end: usize) -> Result<(), RowError> {
        let ids = self
            .text
            .encode(&self.whole[..end], self.add_special_tokens)?;
        if ids.starts_with(&self.tokens) {
            self.tokens = ids;
        } else {
            let rest = self.text.encode(&self.whole[self.bytes..end], false)?;
            self.tokens.extend(rest);
        }
        self.bytes = end;
        Ok(())
    }
}
