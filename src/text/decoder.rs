use std::sync::Arc;

use super::Text;

/// Turns the tokens of one sequence into text as they come. Never gives half a character: bytes
/// that may still become one are kept back.
///
/// All increments and [`TokenDecoder::finish`] together are [`Text::decode`] of the whole. The cost
/// of a token is that of its own bytes, however long the sequence.
#[derive(Debug)]
pub struct TokenDecoder {
    text: Arc<Text>,
    skip_special_tokens: bool,
    /// The next byte is the first of the text, where the space that marks a word is dropped.
    at_start: bool,
    /// The beginning of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl TokenDecoder {
    /// A decoder at the start of a text.
    pub fn new(text: Arc<Text>, skip_special_tokens: bool) -> Self {
        let at_start = text.token_bytes.marks_words_by_leading_space();
        Self {
            text,
            skip_special_tokens,
            at_start,
            pending: Vec::new(),
        }
    }

    /// A decoder that goes on after other text, as an answer does after its prompt: the space that
    /// marks the first word stays.
    pub fn continuing(text: Arc<Text>, skip_special_tokens: bool) -> Self {
        Self {
            at_start: false,
            ..Self::new(text, skip_special_tokens)
        }
    }

    /// The text that this token completes, if any. An id without a token gives none.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special_tokens && self.text.token_bytes.is_special(id) {
            return None;
        }
        let mut bytes = self.text.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let complete = take_complete(&mut self.pending);
        (!complete.is_empty()).then_some(complete)
    }

    /// What is left when no more tokens come: U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Takes all but an unfinished character at the end; what can never become UTF-8 is U+FFFD.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut complete = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        complete.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() || may_become_char(invalid, pending.len() - taken) {
            break;
        }
        complete.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    pending.drain(..taken);
    complete
}

/// Whether an invalid piece is only invalid because the bytes end here (`left` counts it too).
fn may_become_char(invalid: &[u8], left: usize) -> bool {
    invalid.len() == left
        && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
