//! `bad_words`: words that the output must not hold.

use std::sync::Arc;

use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::text::Text;

const NAME: &str = "bad_words";
/// Maximum number of bad words.
const MAX_WORDS: usize = 256;
/// Maximum bytes of one bad word.
const MAX_BYTES: usize = 256;

/// Takes the words as sequences of tokens, each at the start of a text and after a space, as in
/// vLLM.
///
/// # Errors
/// The list is too long, or a word is empty or too long.
pub(super) fn take(fields: &mut Fields<'_>, text: &Text) -> Result<Arc<[Vec<u32>]>, ApiError> {
    let words: Vec<String> = fields.take_list(NAME, MAX_WORDS)?.unwrap_or_default();
    let mut sequences = Vec::with_capacity(2 * words.len());
    for (i, word) in words.iter().enumerate() {
        let word = word.trim_start();
        if word.is_empty() || word.len() > MAX_BYTES {
            let problem = format!("must have 1 to {MAX_BYTES} bytes, got {}", word.len());
            return Err(ApiError::invalid(format!("{NAME}[{i}]"), problem));
        }
        let encode = |word: &str| {
            let ids = text.encode(word, false);
            ids.map_err(|error| ApiError::invalid(NAME, format!("cannot be used: {error}")))
        };
        let (first, inner) = (encode(word)?, encode(&format!(" {word}"))?);
        // A space of its own is no part of the word.
        let is_one_word = inner.len() == first.len() && inner.first() != first.first();
        sequences.extend(
            [Some(first), is_one_word.then_some(inner)]
                .into_iter()
                .flatten(),
        );
    }
    sequences.retain(|ids| !ids.is_empty());
    Ok(sequences.into())
}
