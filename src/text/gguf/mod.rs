//! A base's text from a GGUF's metadata.
//!
//! A GGUF holds the vocabulary but names the pipeline around it by a word: `tokenizer.ggml.model`
//! (byte-level BPE or SentencePiece) and `tokenizer.ggml.pre`. The pipelines here are those of the
//! checkpoints' own `tokenizer.json`. A word that is not known is refused: near enough gives wrong
//! tokens without a sign.

mod byte_level;
mod metadata;
mod sentencepiece;

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::{Extras, Text, TextError};
use metadata::Metadata;

/// `tokenizer.ggml.token_type`, as llama.cpp numbers it.
mod token_type {
    pub const NORMAL: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const CONTROL: u32 = 3;
    pub const USER_DEFINED: u32 = 4;
}

/// The vocabulary: texts and types by token id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u32>,
}

/// A tokenizer before special tokens are added, and what it does when the metadata is silent.
struct Base {
    tokenizer: Tokenizer,
    adds_bos: bool,
}

pub(super) fn read(content: &gguf_file::Content) -> Result<Text, TextError> {
    let metadata = Metadata(&content.metadata);
    let vocabulary = Vocabulary::read(metadata)?;
    let base = match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level::read(metadata, &vocabulary)?,
        Some("llama") => sentencepiece::read(metadata, &vocabulary)?,
        other => {
            return Err(TextError::Metadata {
                key: "tokenizer.ggml.model",
                found: found(other),
                expected: "`gpt2` (byte-level BPE) or `llama` (SentencePiece)",
            });
        }
    };
    let mut tokenizer = base.tokenizer;
    vocabulary.add_special_tokens(&mut tokenizer)?;

    let special_tokens = special_tokens(metadata, &vocabulary)?;
    add_post_processor(&mut tokenizer, metadata, base.adds_bos, &special_tokens)?;
    let mut eos_token_ids = Vec::new();
    for key in [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ] {
        let id = vocabulary.checked_id(metadata, key)?;
        eos_token_ids.extend(id.filter(|id| !eos_token_ids.contains(id)));
    }
    let template = metadata.string("tokenizer.chat_template")?.map(|source| {
        (
            source.to_owned(),
            "the GGUF (`tokenizer.chat_template`)".to_owned(),
        )
    });
    Text::new(
        tokenizer,
        Extras {
            special_tokens,
            template,
            eos_token_ids,
        },
        "the GGUF",
    )
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, TextError> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let types = match metadata.optional_integers("tokenizer.ggml.token_type")? {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(types) if types.len() == tokens.len() => types,
            Some(types) => {
                return Err(TextError::Metadata {
                    key: "tokenizer.ggml.token_type",
                    found: format!("{} types for {} tokens", types.len(), tokens.len()),
                    expected: "one type a token",
                });
            }
        };
        Ok(Self { tokens, types })
    }

    /// Texts with their ids. Of a text that occurs twice the first id counts.
    fn ids<C: FromIterator<(String, u32)>>(&self) -> C {
        let count = self.tokens.len() as u32;
        let entries = (0..count).rev().zip(self.tokens.iter().rev());
        entries.map(|(id, &token)| (token.to_owned(), id)).collect()
    }

    /// The id under a key, where it names a token.
    fn checked_id(&self, metadata: Metadata, key: &'static str) -> Result<Option<u32>, TextError> {
        match metadata.integer(key)? {
            Some(id) if id as usize >= self.tokens.len() => Err(TextError::Metadata {
                key,
                found: id.to_string(),
                expected: "the id of a token in `tokenizer.ggml.tokens`",
            }),
            id => Ok(id),
        }
    }

    /// Control tokens are special; user-defined ones are text that is never split.
    fn add_special_tokens(&self, tokenizer: &mut Tokenizer) -> Result<(), TextError> {
        let added = self
            .tokens
            .iter()
            .zip(&self.types)
            .filter_map(|(&token, &kind)| {
                let special = match kind {
                    token_type::UNKNOWN | token_type::CONTROL => true,
                    token_type::USER_DEFINED => false,
                    _ => return None,
                };
                Some(AddedToken::from(token, special).normalized(false))
            });
        // An empty text would be found everywhere.
        let added: Vec<AddedToken> = added.filter(|token| !token.content.is_empty()).collect();
        tokenizer.add_tokens(added).map(|_| ()).map_err(unusable)
    }
}

/// The special tokens' texts, under the names that chat templates use.
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

/// Puts the bos and eos tokens around a plain prompt, where the base wants them.
fn add_post_processor(
    tokenizer: &mut Tokenizer,
    metadata: Metadata,
    adds_bos: bool,
    special_tokens: &BTreeMap<String, String>,
) -> Result<(), TextError> {
    let wanted = |flag: &'static str, role: &str, default| -> Result<_, TextError> {
        let wanted = metadata.boolean(flag)?.unwrap_or(default);
        Ok(special_tokens.get(role).filter(|_| wanted))
    };
    let bos = wanted("tokenizer.ggml.add_bos_token", "bos_token", adds_bos)?;
    let eos = wanted("tokenizer.ggml.add_eos_token", "eos_token", false)?;
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

fn found(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("`{value}`"))
}

fn unusable(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer {
        origin: "the GGUF".to_owned(),
        reason: error.to_string(),
    }
}
