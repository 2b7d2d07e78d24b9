use std::sync::Arc;

use super::{StopStep, StopStrings, Text, TokenDecoder};

/// How the tokens of one sequence become text.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// The stop string itself is given out too.
    pub include_stop_str_in_output: bool,
    /// No stop string ends within the text of this many first tokens.
    pub min_tokens: usize,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// The text goes on after a prompt, so a space that marks its first word belongs to it.
    pub continues_prompt: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            stop: Vec::new(),
            include_stop_str_in_output: false,
            min_tokens: 0,
            skip_special_tokens: true,
            continues_prompt: true,
        }
    }
}

/// The text of one sequence as its tokens come: decoded in whole characters, ended by stop strings.
///
/// A token that ends the sequence by its id (end of text, a stop token) is not pushed unless its
/// text is wanted.
#[derive(Debug)]
pub struct TextStream {
    decoder: TokenDecoder,
    stop: StopStrings,
    min_tokens: usize,
    tokens: usize,
}

impl TextStream {
    /// A stream at its first token.
    pub fn new(text: Arc<Text>, options: StreamOptions) -> Self {
        let decoder = if options.continues_prompt {
            TokenDecoder::continuing(text, options.skip_special_tokens)
        } else {
            TokenDecoder::new(text, options.skip_special_tokens)
        };
        Self {
            decoder,
            stop: StopStrings::new(options.stop, options.include_stop_str_in_output),
            min_tokens: options.min_tokens,
            tokens: 0,
        }
    }

    /// Takes the next token. Once `stopped` is set the sequence is over: nothing more is given out.
    pub fn push(&mut self, id: u32) -> StopStep {
        self.tokens += 1;
        let piece = self.decoder.push(id).unwrap_or_default();
        self.take(&piece)
    }

    /// The rest of the text when no more tokens come: an unfinished character and what was kept
    /// back as the possible beginning of a stop string.
    pub fn finish(&mut self) -> StopStep {
        let piece = self.decoder.finish().unwrap_or_default();
        let mut step = self.take(&piece);
        if step.stopped.is_none() {
            step.text_to_emit.push_str(&self.stop.finish());
        }
        step
    }

    /// Tokens taken so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn take(&mut self, piece: &str) -> StopStep {
        if self.tokens > self.min_tokens {
            self.stop.push(piece)
        } else {
            self.stop.push_unchecked(piece)
        }
    }
}
