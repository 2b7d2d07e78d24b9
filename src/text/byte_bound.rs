//! Upper bound on the bytes of text that one token can stand for, which tells from a prompt's
//! bytes alone that it cannot fit a context.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;

use super::token_bytes::TokenBytes;

/// Largest number of bytes of the original text per token; `None` if this tokenizer may drop text,
/// or stand a single token for an unknown stretch of any length.
pub(super) fn bytes_per_token(tokenizer: &Tokenizer, tokens: &TokenBytes) -> Option<usize> {
    let ModelWrapper::BPE(_) = tokenizer.get_model() else {
        return None;
    };
    if !tokens.cover_all_text() {
        return None;
    }
    // Such tokens swallow the spaces beside them.
    let added = tokenizer.get_added_tokens_decoder();
    if added.values().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let parts = |part: Result<Value, serde_json::Error>| part.ok();
    let normalizer = parts(serde_json::to_value(tokenizer.get_normalizer()))?;
    let pre_tokenizer = parts(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
    if !keeps_text(&pre_tokenizer) {
        return None;
    }
    let shrinking = shrinking(&normalizer)?.checked_mul(tokens.shrinking())?;
    tokens.longest().max(1).checked_mul(shrinking)
}

/// Most bytes of text that a normalizer turns into one byte; `None` if there is no bound.
fn shrinking(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None => normalizer.is_null().then_some(1),
        Some("Sequence") => {
            let steps = normalizer["normalizers"].as_array()?;
            let mut factors = steps.iter().map(shrinking);
            factors.try_fold(1usize, |all, factor| all.checked_mul(factor?))
        }
        // The Kelvin sign (3 bytes) becomes `K`, and three Hangul letters (9 bytes) a syllable (3).
        Some("NFC") => Some(3),
        Some("Prepend" | "ByteLevel") => Some(1),
        Some("Replace") => {
            let from = normalizer["pattern"]["String"].as_str()?;
            let to = normalizer["content"].as_str()?;
            (!to.is_empty()).then(|| from.len().div_ceil(to.len()))
        }
        Some(_) => None,
    }
}

/// Whether a pre-tokenizer only splits text, and drops none of it.
fn keeps_text(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        None => pre_tokenizer.is_null(),
        Some("Sequence") => {
            let steps = pre_tokenizer["pretokenizers"].as_array();
            steps.is_some_and(|steps| steps.iter().all(keeps_text))
        }
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split") => pre_tokenizer["behavior"] != "Removed",
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::{byte_level_text, sentencepiece_text};
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn only_steps_that_keep_the_text_have_a_bound() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        for (normalizer, factor) in [
            (Value::Null, Some(1)),
            (json!({"type": "NFC"}), Some(3)),
            (replace.clone(), Some(1)),
            (
                json!({"type": "Sequence", "normalizers": [replace, {"type": "NFC"}]}),
                Some(3),
            ),
            (
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                None,
            ),
            (
                json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
                None,
            ),
            (
                json!({"type": "Replace", "pattern": {"String": " "}, "content": ""}),
                None,
            ),
        ] {
            assert_eq!(shrinking(&normalizer), factor, "{normalizer}");
        }
        assert!(keeps_text(
            &json!({"type": "Sequence", "pretokenizers": [{"type": "Digits"}]})
        ));
        assert!(!keeps_text(
            &json!({"type": "Split", "behavior": "Removed"})
        ));
        assert!(!keeps_text(&json!({"type": "WhitespaceSplit"})));
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens_than_its_bytes_say(
            text in proptest::collection::vec(
                prop_oneof!["\\PC{0,6}", " {0,9}", "▁{0,9}", "<\\|im_end\\|>", "\u{212A}{0,9}"],
                0..8,
            ),
        ) {
            let text = text.concat();
            for base in ["smollm", "llama-bpe", "qwen2"].map(byte_level_text) {
                let tokens = base.encode(&text, false).unwrap().len();
                prop_assert!(text.len() <= base.max_bytes(tokens).unwrap());
            }
            let base = sentencepiece_text();
            let tokens = base.encode(&text, false).unwrap().len();
            if let Some(most) = base.max_bytes(tokens) {
                prop_assert!(text.len() <= most);
            }
        }
    }
}
