//! Vocabulary of a GGUF, shared by both kinds of tokenizer.

use tokenizers::{AddedToken, Tokenizer};

use super::metadata::Metadata;
use crate::text::error::TextError;

/// Name of the GGUF in error messages.
pub(super) const ORIGIN: &str = "the GGUF";

const TOKENS: &str = "tokenizer.ggml.tokens";

/// Maximum length of a token. All splits of a SentencePiece token into two are candidates for a
/// merge, which takes time by the square of its length.
const MAX_TOKEN_BYTES: usize = 1024;

/// Values of `tokenizer.ggml.token_type`, from llama.cpp.
pub(super) mod token_type {
    /// An ordinary token.
    pub const NORMAL: u32 = 1;
    /// The token of unknown text.
    pub const UNKNOWN: u32 = 2;
    /// A special token.
    pub const CONTROL: u32 = 3;
    /// A token that is matched before the merges.
    pub const USER_DEFINED: u32 = 4;
}

/// Texts and types of the tokens, by id.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<&'a str>,
    /// Values of [`token_type`].
    pub types: Vec<u32>,
}

/// Tokenizer before special tokens are added.
pub(super) struct Pipeline {
    pub tokenizer: Tokenizer,
    /// Default of `tokenizer.ggml.add_bos_token`.
    pub adds_bos: bool,
}

impl<'a> Vocabulary<'a> {
    /// Reads the tokens and their types.
    pub fn read(metadata: Metadata<'a>) -> Result<Self, TextError> {
        let tokens = metadata.strings(TOKENS)?;
        if let Some(long) = tokens.iter().find(|token| token.len() > MAX_TOKEN_BYTES) {
            return Err(TextError::Metadata {
                key: TOKENS,
                found: format!("a token of {} bytes", long.len()),
                expected: "tokens of at most 1,024 bytes",
            });
        }
        let types = match metadata.optional_integers("tokenizer.ggml.token_type")? {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(types) if types.len() == tokens.len() => types,
            Some(types) => {
                return Err(TextError::Metadata {
                    key: "tokenizer.ggml.token_type",
                    found: format!("{} types for {} tokens", types.len(), tokens.len()),
                    expected: "one type per token",
                });
            }
        };
        Ok(Self { tokens, types })
    }

    /// Texts with their ids. If a text occurs twice, the first id wins.
    pub fn ids<C: FromIterator<(String, u32)>>(&self) -> C {
        let count = self.tokens.len() as u32;
        let entries = (0..count).rev().zip(self.tokens.iter().rev());
        entries.map(|(id, &token)| (token.to_owned(), id)).collect()
    }

    /// Token id stored under a key, if present.
    ///
    /// # Errors
    /// The id is outside the vocabulary.
    pub fn checked_id(
        &self,
        metadata: Metadata,
        key: &'static str,
    ) -> Result<Option<u32>, TextError> {
        match metadata.integer(key)? {
            Some(id) if id as usize >= self.tokens.len() => Err(TextError::Metadata {
                key,
                found: id.to_string(),
                expected: "the id of a token in `tokenizer.ggml.tokens`",
            }),
            id => Ok(id),
        }
    }

    /// Adds the control tokens as special tokens and the user-defined ones as text that is never
    /// split.
    pub fn add_special_tokens(&self, tokenizer: &mut Tokenizer) -> Result<(), TextError> {
        let added: Vec<AddedToken> = self
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
            })
            // An empty text would match everywhere.
            .filter(|token| !token.content.is_empty())
            .collect();
        tokenizer.add_tokens(added).map(|_| ()).map_err(unusable)
    }
}

/// A metadata string in an error message.
pub(super) fn found(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("`{value}`"))
}

/// Error of the `tokenizers` crate.
pub(super) fn unusable(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer {
        origin: ORIGIN.to_owned(),
        reason: error.to_string(),
    }
}
