use std::sync::Arc;

use super::base::Text;

/// Incremental decoder of one sequence. Holds back the bytes of an incomplete character, so that
/// every increment is valid UTF-8.
///
/// The increments and [`TokenDecoder::finish`] concatenate to [`Text::decode`] of the whole
/// sequence. A token costs time linear in its bytes, regardless of the sequence's length.
#[derive(Debug)]
pub struct TokenDecoder {
    text: Arc<Text>,
    skip_special_tokens: bool,
    /// Whether the next byte is the first of the text, where the space that marks a word is
    /// dropped.
    at_start: bool,
    /// Beginning of a character: at most 3 bytes between calls.
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

    /// A decoder that continues other text, as a completion continues its prompt: the space that
    /// marks the first word is kept.
    pub fn continuing(text: Arc<Text>, skip_special_tokens: bool) -> Self {
        Self {
            at_start: false,
            ..Self::new(text, skip_special_tokens)
        }
    }

    /// Text that this token completes, if any; `None` for an id without a token.
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

    /// Ends the sequence: U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Takes everything except an incomplete character at the end. Bytes that can never become UTF-8
/// turn into U+FFFD.
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

/// Whether `invalid` is a character cut off by the end of the input, of which `left` bytes,
/// including `invalid`, remain.
fn may_become_char(invalid: &[u8], left: usize) -> bool {
    invalid.len() == left
        && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
