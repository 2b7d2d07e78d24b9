//! Byte-level BPE as in GPT-2, with each model family's pre-tokenizer.

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::metadata::Metadata;
use super::vocabulary::{Pipeline, Vocabulary, found, unusable};
use crate::text::error::TextError;

const MERGES: &str = "tokenizer.ggml.merges";

/// How a model family splits text into words before the merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    /// As GPT-2, but each digit is a word.
    SmolLm,
    /// Digits in groups of up to three; a word that is itself a token skips the merges.
    Llama3,
    /// Each digit is a word; text is normalised to NFC.
    Qwen2,
}

impl PreTokenizer {
    fn read(metadata: Metadata) -> Result<Self, TextError> {
        let key = "tokenizer.ggml.pre";
        match metadata.string(key)? {
            None | Some("default" | "gpt-2" | "gpt2") => Ok(Self::Gpt2),
            Some("smollm") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::Llama3),
            Some("qwen2" | "deepseek-r1-qwen") => Ok(Self::Qwen2),
            other => Err(TextError::Metadata {
                key,
                found: found(other),
                expected: "smollm, llama-bpe, qwen2, gpt-2 or default",
            }),
        }
    }

    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let bytes = |use_regex| ByteLevel::new(false, true, use_regex).into();
        let split = |digits: &str| {
            let pattern = [
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
                r"[^\r\n\p{L}\p{N}]?\p{L}+",
                digits,
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            ]
            .join("|");
            Split::new(
                SplitPattern::Regex(pattern),
                SplitDelimiterBehavior::Isolated,
                false,
            )
        };
        let steps = match self {
            Self::Gpt2 => return Ok(bytes(true)),
            Self::SmolLm => vec![Digits::new(true).into(), bytes(true)],
            Self::Llama3 => vec![split(r"\p{N}{1,3}")?.into(), bytes(false)],
            Self::Qwen2 => vec![split(r"\p{N}")?.into(), bytes(false)],
        };
        Ok(Sequence::new(steps).into())
    }
}

/// Builds the tokenizer.
pub(super) fn read(metadata: Metadata, vocabulary: &Vocabulary) -> Result<Pipeline, TextError> {
    let pre_tokenizer = PreTokenizer::read(metadata)?;
    let merges = metadata
        .strings(MERGES)?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(malformed_merges(format!("`{merge}`"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary.ids::<Vocab>(), merges)
        .ignore_merges(pre_tokenizer == PreTokenizer::Llama3)
        .build()
        .map_err(|error| malformed_merges(error.to_string()))?;

    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer.build().map_err(unusable)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if pre_tokenizer == PreTokenizer::Qwen2 {
        tokenizer
            .with_normalizer(Some(NormalizerWrapper::from(NFC)))
            .map_err(unusable)?;
    }
    Ok(Pipeline {
        tokenizer,
        adds_bos: pre_tokenizer == PreTokenizer::Llama3,
    })
}

fn malformed_merges(found: String) -> TextError {
    TextError::Metadata {
        key: MERGES,
        found,
        expected: "pairs of tokens separated by a space, whose concatenation is a token",
    }
}
