//! SentencePiece BPE, as in Llama 2 and the first Mistral models.
//!
//! SentencePiece merges the neighbours whose joint piece has the best score. The equivalent list of
//! merges holds every split of a piece into two others, best piece first, as in the conversion of
//! slow tokenizers in transformers.

use std::cmp::Reverse;
use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::metadata::Metadata;
use super::vocabulary::{Pipeline, Vocabulary, token_type, unusable};
use crate::text::error::TextError;

/// Represents a space in pieces.
const SPACE: &str = "▁";

const UNKNOWN_KEY: &str = "tokenizer.ggml.unknown_token_id";

/// Builds the tokenizer.
pub(super) fn read(metadata: Metadata, vocabulary: &Vocabulary) -> Result<Pipeline, TextError> {
    let scores = metadata.floats("tokenizer.ggml.scores")?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(TextError::Metadata {
            key: "tokenizer.ggml.scores",
            found: format!(
                "{} scores for {} tokens",
                scores.len(),
                vocabulary.tokens.len()
            ),
            expected: "one score per token",
        });
    }
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocabulary.ids::<Vocab>(), merges(vocabulary, &scores))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(id) = vocabulary.checked_id(metadata, UNKNOWN_KEY)? {
        bpe = bpe.unk_token(vocabulary.tokens[id as usize].to_owned());
    }
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(unusable)?);

    let mut normalizers: Vec<NormalizerWrapper> =
        vec![Replace::new(" ", SPACE).map_err(unusable)?.into()];
    let mut decoders = vec![
        Replace::new(SPACE, " ").map_err(unusable)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if metadata
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true)
    {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(unusable)?
        .with_decoder(Some(Decoders::new(decoders)));
    Ok(Pipeline {
        tokenizer,
        adds_bos: true,
    })
}

/// All splits of a piece into two pieces, sorted by the score of the whole piece, best first; those
/// of one piece by the length of the left part, longest first.
fn merges(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<(String, String)> {
    let pieces: HashMap<&str, f32> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.types)
        .zip(scores)
        .filter(|&((_, &kind), _)| kind == token_type::NORMAL)
        .map(|((&piece, _), &score)| (piece, score))
        .collect();
    let mut merges: Vec<(f32, &str, &str)> = pieces
        .iter()
        .flat_map(|(&piece, &score)| {
            let cuts = piece.char_indices().skip(1);
            cuts.map(move |(at, _)| (score, &piece[..at], &piece[at..]))
        })
        .filter(|(_, left, right)| pieces.contains_key(left) && pieces.contains_key(right))
        .collect();
    merges.sort_unstable_by(|a, b| {
        let by_length = |merge: &(f32, &str, &str)| Reverse(merge.1.chars().count());
        b.0.total_cmp(&a.0)
            .then_with(|| by_length(a).cmp(&by_length(b)))
            .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    merges
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}
