use std::sync::Arc;

use super::base::Text;
use super::decoder::TokenDecoder;
use super::stop::{StopSet, StopStep, StopStrings};

/// Options for turning the tokens of one sequence into text.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Stop strings: the text ends before the first of them.
    pub stop: StopSet,
    /// Whether the stop string is part of the text.
    pub include_stop_str_in_output: bool,
    /// Number of initial tokens whose text cannot complete a stop string.
    pub min_tokens: usize,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            stop: StopSet::default(),
            include_stop_str_in_output: false,
            min_tokens: 0,
            skip_special_tokens: true,
        }
    }
}

/// Text of one completion as its tokens arrive: decoded in whole characters, ended by stop strings.
///
/// Do not push a token that ends the sequence by its id (end of text, a stop token) unless its text
/// is part of the output.
#[derive(Debug)]
pub struct TextStream {
    decoder: TokenDecoder,
    stop: StopStrings,
    min_tokens: usize,
    tokens: usize,
}

impl TextStream {
    /// A stream before its first token. It continues a prompt, so a space that marks its first word
    /// is part of the text.
    pub fn new(text: Arc<Text>, options: StreamOptions) -> Self {
        Self {
            decoder: TokenDecoder::continuing(text, options.skip_special_tokens),
            stop: StopStrings::new(options.stop, options.include_stop_str_in_output),
            min_tokens: options.min_tokens,
            tokens: 0,
        }
    }

    /// Takes the next token. Once `stopped` is set, the text has ended and nothing more is emitted.
    pub fn push(&mut self, id: u32) -> StopStep {
        self.tokens += 1;
        let chunk = self.decoder.push(id).unwrap_or_default();
        self.check(&chunk)
    }

    /// Ends the text and returns the rest: an incomplete character, and text held back as the
    /// possible beginning of a stop string.
    pub fn finish(&mut self) -> StopStep {
        let chunk = self.decoder.finish().unwrap_or_default();
        let mut step = self.check(&chunk);
        if step.stopped.is_none() {
            step.text_to_emit.push_str(&self.stop.finish());
        }
        step
    }

    fn check(&mut self, chunk: &str) -> StopStep {
        if self.tokens > self.min_tokens {
            self.stop.push(chunk)
        } else {
            self.stop.push_unchecked(chunk)
        }
    }
}
