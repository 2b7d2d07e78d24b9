//! Table of each token's bytes, computed once from the tokenizer's decoder.
//!
//! Decoding by bytes makes streaming exact and cheap: no window of earlier tokens is decoded again,
//! and an incomplete character is a prefix of a UTF-8 sequence. The result differs from
//! `Tokenizer::decode` in one case: in a run of byte-fallback tokens that is not valid UTF-8, only
//! the invalid part becomes U+FFFD, not the whole run, which could not be streamed.

use serde_json::Value;
use tokenizers::Tokenizer;

/// Maximum number of token ids: the table has an entry for each, also for those without a token.
const MAX_TOKENS: usize = 1 << 20;

/// Bytes of each token id, in one buffer.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// End of each token's bytes; they begin at the end of the previous id's.
    ends: Vec<usize>,
    special: Vec<bool>,
    leading_space: bool,
    /// Bytes of a vocabulary's text per byte of the token, at most: 3 if `▁` stands for a space.
    shrinking: usize,
    /// Whether unknown characters are spelled in bytes.
    spells_bytes: bool,
}

impl TokenBytes {
    /// Builds the table.
    ///
    /// # Errors
    /// The reason why the decoder is not supported.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let spelling = Spelling::new(tokenizer)?;
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if len > MAX_TOKENS {
            return Err(format!(
                "it has the token id {}, expected less than {MAX_TOKENS}",
                len - 1
            ));
        }
        // The vocabulary may hold two texts for one id (an added token that is also the model's);
        // `id_to_token` decides.
        let mut table = Self {
            bytes: Vec::with_capacity(len * 8),
            ends: Vec::with_capacity(len),
            special: vec![false; len],
            leading_space: spelling.leading_space,
            shrinking: spelling.shrinking(),
            spells_bytes: spelling.byte_level || spelling.byte_fallback,
        };
        for id in 0..len as u32 {
            if let Some(token) = tokenizer.id_to_token(id) {
                spelling.append_bytes(&token, &mut table.bytes);
            }
            table.ends.push(table.bytes.len());
        }
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if let Some(special) = table.special.get_mut(id as usize) {
                *special = token.special;
            }
        }
        Ok(table)
    }

    /// Number of token ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of a token; empty for an id without a token.
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        let lengths = self.ends.iter().zip(starts).map(|(end, start)| end - start);
        lengths.max().unwrap_or(0)
    }

    /// Bytes of text that become one byte of a token, at most.
    pub fn shrinking(&self) -> usize {
        self.shrinking
    }

    /// Whether the tokens spell any text, so that none is dropped or unknown: each byte of UTF-8
    /// has a token of its own.
    pub fn cover_all_text(&self) -> bool {
        let mut known = [false; 256];
        for id in 0..self.len() as u32 {
            if let [byte] = *self.get(id) {
                known[usize::from(byte)] = true;
            }
        }
        let occurs = |byte: usize| !matches!(byte, 0xC0 | 0xC1 | 0xF5..);
        self.spells_bytes
            && (0..256)
                .filter(|&byte| occurs(byte))
                .all(|byte| known[byte])
    }

    /// Whether a token is special, that is, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether every word begins with a space, even the first one of a text, where decoding drops
    /// it (SentencePiece).
    pub fn marks_words_by_leading_space(&self) -> bool {
        self.leading_space
    }
}

/// How the vocabulary spells bytes: those decoder steps that apply to single tokens.
#[derive(Default)]
struct Spelling {
    /// One character per byte, as in GPT-2.
    byte_level: bool,
    /// Tokens such as `<0x0A>` are single bytes.
    byte_fallback: bool,
    replacements: Vec<(String, String)>,
    leading_space: bool,
    fused: bool,
}

impl Spelling {
    fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = tokenizer
            .get_decoder()
            .ok_or("it has no decoder; expected ByteLevel, Metaspace or byte fallback")?;
        let decoder = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
        let mut spelling = Self::default();
        spelling.add_step(&decoder)?;
        Ok(spelling)
    }

    fn add_step(&mut self, step: &Value) -> Result<(), String> {
        let unsupported = || {
            Err(format!(
                "decoder {step} is not supported; expected ByteLevel, Metaspace or byte fallback"
            ))
        };
        match step["type"].as_str() {
            Some("Sequence") => {
                for step in step["decoders"].as_array().into_iter().flatten() {
                    self.add_step(step)?;
                }
            }
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => self.fused = true,
            Some("Replace") => match (step["pattern"]["String"].as_str(), step["content"].as_str())
            {
                (Some(from), Some(to)) => self.replacements.push((from.into(), to.into())),
                _ => return unsupported(),
            },
            Some("Metaspace") => match step["replacement"].as_str() {
                Some(mark) => {
                    self.replacements.push((mark.into(), " ".into()));
                    self.leading_space = step["prepend_scheme"] != "never";
                }
                None => return unsupported(),
            },
            Some("Strip") => {
                let one_leading_space =
                    step["content"] == " " && step["start"] == 1 && step["stop"] == 0;
                if !(one_leading_space && self.fused) {
                    return unsupported();
                }
                self.leading_space = true;
            }
            _ => return unsupported(),
        }
        Ok(())
    }

    /// Bytes of a vocabulary's text that become one byte of a token, at most.
    fn shrinking(&self) -> usize {
        let factor = |(from, to): &(String, String)| from.len().div_ceil(to.len().max(1));
        self.replacements.iter().map(factor).fold(1, usize::max)
    }

    fn append_bytes(&self, token: &str, out: &mut Vec<u8>) {
        if self.byte_level {
            // Added tokens are spelled literally.
            match token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>() {
                Some(bytes) => out.extend(bytes),
                None => out.extend(token.bytes()),
            }
        } else if let Some(byte) = self.byte_fallback.then(|| fallback_byte(token)).flatten() {
            out.push(byte);
        } else {
            let mut text = token.to_owned();
            for (from, to) in &self.replacements {
                text = text.replace(from, to);
            }
            out.extend(text.bytes());
        }
    }
}

/// `<0x0A>` → 10.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Byte that a character of a byte-level vocabulary represents: printable Latin-1 characters
/// represent themselves; the characters from U+0100 on represent the other 68 bytes, in order.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(), // 0x00..=0x20
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(), // 0x7F..=0xA0
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::decoders::DecoderWrapper;
    use tokenizers::models::bpe::BPE;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(byte_of_char)
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_char('｜'), None);
    }

    #[test]
    fn a_token_id_that_would_need_a_huge_table_is_refused() {
        let mut vocab = tokenizers::models::bpe::Vocab::default();
        vocab.insert("a".to_owned(), u32::MAX);
        let bpe = BPE::builder().vocab_and_merges(vocab, vec![]).build();
        let mut tokenizer = Tokenizer::new(bpe.unwrap());
        tokenizer.with_decoder(Some(tokenizers::decoders::byte_level::ByteLevel::default()));
        let reason = TokenBytes::new(&tokenizer).err().unwrap();
        assert_eq!(
            reason,
            "it has the token id 4294967295, expected less than 1048576"
        );
    }

    #[test]
    fn only_two_hex_digits_are_a_fallback_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for token in ["<0xG1>", "<0xA>", "<0x0A", "<s>", "<0x0A>>"] {
            assert_eq!(fallback_byte(token), None, "{token}");
        }
    }

    #[test]
    fn an_unsupported_decoder_is_refused_by_name() {
        for (decoder, name) in [
            (
                serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
                "WordPiece",
            ),
            (
                serde_json::json!({"type": "Strip", "content": "x", "start": 1, "stop": 0}),
                "Strip",
            ),
        ] {
            let mut tokenizer = Tokenizer::new(BPE::default());
            let decoder: DecoderWrapper = serde_json::from_value(decoder).unwrap();
            tokenizer.with_decoder(Some(decoder));
            let reason = TokenBytes::new(&tokenizer).err().unwrap();
            assert!(
                reason.contains(name) && reason.contains("expected ByteLevel"),
                "{reason}"
            );
        }
        let reason = TokenBytes::new(&Tokenizer::new(BPE::default()))
            .err()
            .unwrap();
        assert!(reason.contains("no decoder"), "{reason}");
    }
}
