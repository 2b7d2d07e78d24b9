//! The base's vocabulary, as llguidance reads it.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::text::Text;

/// Maximum bytes of a token that a grammar may use: the depth of the trie.
const MAX_TOKEN_BYTES: usize = 1000;

/// The trie of the tokens' bytes for a model of `vocab_size` tokens. Special tokens and
/// `end_tokens` match no text. Ids without a token are never allowed, and neither are tokens of
/// more than [`MAX_TOKEN_BYTES`].
///
/// llguidance knows no end token: the engine adds the base's own where the output may end.
pub fn token_trie(text: &Text, vocab_size: usize, end_tokens: &[u32]) -> TokEnv {
    let bytes = |id: u32| {
        let bytes = text.token_bytes(id);
        if text.is_special(id) || end_tokens.contains(&id) {
            let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
            [&marker, bytes].concat()
        } else if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            // A byte-level vocabulary has a token for 0xFF, which is in no UTF-8 text.
            Vec::new()
        } else {
            bytes.to_vec()
        }
    };
    let usable = |bytes: &Vec<u8>| bytes.len() <= MAX_TOKEN_BYTES;
    let words = (0..vocab_size as u32).map(|id| Some(bytes(id)).filter(usable).unwrap_or_default());
    let words: Vec<Vec<u8>> = words.collect();
    let info = TokRxInfo::new(vocab_size as u32, INVALID_TOKEN);
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
}
