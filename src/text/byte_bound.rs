//! Upper bound on the bytes of text that one token can stand for, which tells from a prompt's
//! bytes alone that it cannot fit a context.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;

use super::token_bytes::TokenBytes;

/// Most stripping tokens that a bound is computed for: each is looked for beside all white space.
const MAX_STRIPPING: usize = 256;

/// Bound on the bytes of text per token.
#[derive(Debug)]
pub(super) struct ByteBound {
    /// Largest number of bytes of the original text per token, other than stripped white space.
    per_token: usize,
    /// Contents of the added tokens that swallow the white space before them.
    left: Vec<String>,
    /// Contents of those that swallow the white space after them.
    right: Vec<String>,
}

impl ByteBound {
    /// The bound of a tokenizer; `None` if it may drop text, or stand a single token for an unknown
    /// stretch of any length.
    pub fn new(tokenizer: &Tokenizer, tokens: &TokenBytes) -> Option<Self> {
        let ModelWrapper::BPE(_) = tokenizer.get_model() else {
            return None;
        };
        if !tokens.cover_all_text() {
            return None;
        }
        let parts = |part: Result<Value, serde_json::Error>| part.ok();
        let normalizer = parts(serde_json::to_value(tokenizer.get_normalizer()))?;
        let pre_tokenizer = parts(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
        if !keeps_text(&pre_tokenizer) {
            return None;
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for token in tokenizer.get_added_tokens_decoder().into_values() {
            if !token.lstrip && !token.rstrip {
                continue;
            }
            // Found in the text as it is, right beside the white space.
            let is_verbatim = !token.normalized || normalizer.is_null();
            if !is_verbatim || token.content.is_empty() || token.content.trim() != token.content {
                return None;
            }
            left.extend(token.lstrip.then(|| token.content.clone()));
            right.extend(token.rstrip.then_some(token.content));
        }
        if left.len() + right.len() > MAX_STRIPPING {
            return None;
        }
        let shrinking = shrinking(&normalizer)?.checked_mul(tokens.shrinking())?;
        Some(Self {
            per_token: tokens.longest().max(1).checked_mul(shrinking)?,
            left,
            right,
        })
    }

    /// Most bytes that this number of tokens stands for, other than stripped white space.
    pub fn bytes(&self, tokens: usize) -> usize {
        self.per_token.saturating_mul(tokens)
    }

    /// Whether a token may swallow any number of spaces beside it.
    pub fn strips(&self) -> bool {
        !(self.left.is_empty() && self.right.is_empty())
    }

    /// Bytes of a text without the white space that tokens may swallow.
    pub fn counted(&self, text: &str) -> usize {
        let stripped = self.stripped(text).map(|(start, end)| end - start);
        text.len() - stripped.sum::<usize>()
    }

    /// The end of a text that has at least this number of bytes without the white space that tokens
    /// may swallow, or the whole text.
    pub fn end<'a>(&self, text: &'a str, bytes: usize) -> &'a str {
        let mut excess = self.counted(text).saturating_sub(bytes);
        let mut cut = 0;
        for (start, end) in self.stripped(text) {
            if excess <= start - cut {
                break;
            }
            excess -= start - cut;
            cut = end;
        }
        let mut start = cut + excess;
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        &text[start..]
    }

    /// The runs of white space that a token may swallow, in order.
    fn stripped<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut at = if self.strips() { 0 } else { text.len() };
        std::iter::from_fn(move || {
            loop {
                let start = at + text[at..].find(char::is_whitespace)?;
                let rest = &text[start..];
                let len = rest.find(|c: char| !c.is_whitespace());
                at = start + len.unwrap_or(rest.len());
                let (before, after) = (&text[..start], &text[at..]);
                let is_stripped = self.left.iter().any(|token| after.starts_with(token))
                    || self.right.iter().any(|token| before.ends_with(token));
                if is_stripped {
                    return Some((start, at));
                }
            }
        })
    }
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
    use crate::text::tests::{byte_level_text, sentencepiece_text, stripping_text};
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

    #[test]
    fn white_space_counts_unless_a_token_swallows_it() {
        let text = stripping_text();
        for (input, counted) in [
            ("a  b", 4),
            ("a  <left>  b", 4 + 6),
            ("a \u{3000}\n<left>", 7),
            ("<right>  b  ", 7 + 3),
            ("<right>  <left>", 13),
            ("<rig  ht>", 9),
        ] {
            let (found, _) = text.longer_than(input, 0).unwrap();
            assert_eq!(found, counted, "{input:?}");
        }
        // All of 8 MB counts, unless it is white space beside a token.
        let long = " ".repeat(8 << 20);
        assert!(text.longer_than(&long, 256).is_some());
        assert!(text.longer_than(&format!("<right>{long}"), 256).is_none());
    }

    #[test]
    fn the_end_of_a_text_has_the_bytes_that_count() {
        let text = stripping_text();
        let whole = format!("{}<right>{}é<left>", "a".repeat(9000), " ".repeat(9000));
        let end = text.end_of(&whole, 2).unwrap();
        assert!(whole.ends_with(end) && end.len() < whole.len());
        assert!(text.longer_than(end, 1).is_some());
        assert_eq!(text.end_of(&whole, 9000), Some(&whole[..]));
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens_than_its_bytes_say(
            text in proptest::collection::vec(
                prop_oneof![
                    "\\PC{0,6}",
                    " {0,9}",
                    "▁{0,9}",
                    "<\\|im_end\\|>",
                    "<(left|right)>",
                    "\u{212A}{0,9}",
                ],
                0..8,
            ),
        ) {
            let text = text.concat();
            for base in ["smollm", "llama-bpe", "qwen2"].map(byte_level_text) {
                let tokens = base.encode(&text, false).unwrap().len();
                prop_assert!(text.len() <= base.max_bytes(tokens).unwrap());
            }
            let base = stripping_text();
            let tokens = base.encode(&text, false).unwrap().len();
            prop_assert_eq!(base.longer_than(&text, tokens), None);
            let base = sentencepiece_text();
            let tokens = base.encode(&text, false).unwrap().len();
            if let Some(most) = base.max_bytes(tokens) {
                prop_assert!(text.len() <= most);
            }
        }
    }
}
