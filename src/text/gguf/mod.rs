//! Tokenizer and chat template from GGUF metadata.
//!
//! A GGUF holds the vocabulary, but only names the pipeline around it: `tokenizer.ggml.model`
//! (byte-level BPE or SentencePiece) and `tokenizer.ggml.pre`. The pipelines here are those of the
//! checkpoints' `tokenizer.json` files. Unknown names are refused, because a similar pipeline would
//! silently give wrong tokens.

mod byte_level;
mod metadata;
mod sentencepiece;
mod vocabulary;

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file;
use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::error::TextError;
use super::tokenizer_parts::{TemplateSource, TokenizerParts};
use metadata::Metadata;
use vocabulary::{ORIGIN, Vocabulary, found, unusable};

/// Reads the parts from a GGUF's metadata.
pub(super) fn read(content: &gguf_file::Content) -> Result<TokenizerParts, TextError> {
    let metadata = Metadata(&content.metadata);
    let vocabulary = Vocabulary::read(metadata)?;
    let (pipeline, class) = match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") => (
            byte_level::read(metadata, &vocabulary)?,
            "GPT2TokenizerFast",
        ),
        Some("llama") => (
            sentencepiece::read(metadata, &vocabulary)?,
            "LlamaTokenizerFast",
        ),
        other => {
            return Err(TextError::Metadata {
                key: "tokenizer.ggml.model",
                found: found(other),
                expected: "`gpt2` (byte-level BPE) or `llama` (SentencePiece)",
            });
        }
    };
    let mut tokenizer = pipeline.tokenizer;
    vocabulary.add_special_tokens(&mut tokenizer)?;

    let special_tokens = special_tokens(metadata, &vocabulary)?;
    add_post_processor(&mut tokenizer, metadata, pipeline.adds_bos, &special_tokens)?;
    let mut eos_token_ids = Vec::new();
    for key in [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ] {
        let id = vocabulary.checked_id(metadata, key)?;
        eos_token_ids.extend(id.filter(|id| !eos_token_ids.contains(id)));
    }
    let template = metadata
        .string("tokenizer.chat_template")?
        .map(|source| TemplateSource {
            source: source.to_owned(),
            origin: "the GGUF (`tokenizer.chat_template`)".to_owned(),
        });
    Ok(TokenizerParts {
        tokenizer,
        class: class.to_owned(),
        special_tokens,
        template,
        eos_token_ids,
        origin: ORIGIN.to_owned(),
    })
}

/// Texts of the special tokens by role, as chat templates name them.
fn special_tokens(
    metadata: Metadata,
    vocabulary: &Vocabulary,
) -> Result<BTreeMap<String, String>, TextError> {
    let mut tokens = BTreeMap::new();
    for (role, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(id) = vocabulary.checked_id(metadata, key)? {
            tokens.insert(role.to_owned(), vocabulary.tokens[id as usize].to_owned());
        }
    }
    Ok(tokens)
}

/// Adds `bos` and `eos` tokens around a plain prompt if the metadata says so. `adds_bos` is the
/// default of `tokenizer.ggml.add_bos_token`.
fn add_post_processor(
    tokenizer: &mut Tokenizer,
    metadata: Metadata,
    adds_bos: bool,
    special_tokens: &BTreeMap<String, String>,
) -> Result<(), TextError> {
    let token_if = |flag: &'static str, role: &str, default| -> Result<_, TextError> {
        let enabled = metadata.boolean(flag)?.unwrap_or(default);
        Ok(special_tokens.get(role).filter(|_| enabled))
    };
    let bos = token_if("tokenizer.ggml.add_bos_token", "bos_token", adds_bos)?;
    let eos = token_if("tokenizer.ggml.add_eos_token", "eos_token", false)?;
    if bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let text = "$A".to_owned();
    let single: Vec<String> = bos.into_iter().chain([&text]).chain(eos).cloned().collect();
    let ids: Vec<(String, u32)> = bos
        .into_iter()
        .chain(eos)
        .filter_map(|token| Some((token.clone(), tokenizer.token_to_id(token)?)))
        .collect();
    let processor = TemplateProcessing::builder()
        .try_single(single)
        .map_err(|error| unusable(error.into()))?
        .special_tokens(ids)
        .build()
        .map_err(|error| unusable(error.into()))?;
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}
