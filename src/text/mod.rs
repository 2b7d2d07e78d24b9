//! Everything between strings and token ids: tokenizer, chat template, incremental decoding, stop
//! strings. Knows no HTTP, no engine and no tensor.
//!
//! A [`Text`] is read once per base, from a folder in Hugging Face layout or from a GGUF's
//! metadata, and shared by `Arc`. A request is rendered and encoded by it; what the engine
//! generates goes through one [`TextStream`] per sequence.

mod decoder;
mod error;
mod gguf;
mod hugging_face;
mod save;
mod stop;
mod stream;
mod template;
mod template_functions;
#[cfg(test)]
pub(crate) mod tests;
mod token_bytes;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::gguf_file;
use tokenizers::Tokenizer;

pub use decoder::TokenDecoder;
pub use error::TextError;
pub use stop::{StopStep, StopStrings};
pub use stream::{StreamOptions, TextStream};
pub use template::ChatMessage;

use template::ChatTemplate;
use token_bytes::TokenBytes;

/// Everything between strings and token ids for one base. Immutable; share it by `Arc`.
pub struct Text {
    tokenizer: Tokenizer,
    token_bytes: TokenBytes,
    template: Option<ChatTemplate>,
    eos_token_ids: Vec<u32>,
    sources: Sources,
}

/// What the text was made of, as it is written again.
#[derive(Default)]
struct Sources {
    special_tokens: BTreeMap<String, String>,
    template: Option<String>,
}

/// What a folder or a GGUF says besides the tokenizer itself.
#[derive(Default)]
struct Extras {
    /// Texts of the special tokens by role: `bos_token`, `eos_token`, ...
    special_tokens: BTreeMap<String, String>,
    /// Source of the chat template, and where it was found.
    template: Option<(String, String)>,
    eos_token_ids: Vec<u32>,
}

impl Text {
    /// Reads `tokenizer.json` (required), `tokenizer_config.json`, `special_tokens_map.json` and
    /// the chat template: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// A missing or broken file, or a tokenizer or template of a kind that is not supported.
    pub fn from_folder(dir: &Path) -> Result<Self, TextError> {
        hugging_face::read(dir)
    }

    /// Builds the tokenizer and the chat template from a GGUF's metadata.
    ///
    /// # Errors
    /// Missing or malformed metadata, or a tokenizer of a kind that is not supported.
    pub fn from_gguf(content: &gguf_file::Content) -> Result<Self, TextError> {
        gguf::read(content)
    }

    /// `origin` names the place the tokenizer came from, for the error message.
    fn new(mut tokenizer: Tokenizer, extras: Extras, origin: &str) -> Result<Self, TextError> {
        // A tokenizer file may ask for truncation and padding: right for training, never here.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TextError::Tokenizer {
                origin: origin.to_owned(),
                reason: error.to_string(),
            })?;
        let token_bytes = TokenBytes::new(&tokenizer).map_err(|reason| TextError::Tokenizer {
            origin: origin.to_owned(),
            reason,
        })?;
        let sources = Sources {
            special_tokens: extras.special_tokens.clone(),
            template: extras.template.as_ref().map(|(source, _)| source.clone()),
        };
        let template = extras
            .template
            .map(|(source, origin)| {
                ChatTemplate::new(&source, extras.special_tokens)
                    .map_err(|reason| TextError::Template { origin, reason })
            })
            .transpose()?;
        Ok(Self {
            tokenizer,
            token_bytes,
            template,
            eos_token_ids: extras.eos_token_ids,
            sources,
        })
    }

    /// Token ids of a text. Special tokens that are spelled out in it are recognised.
    /// `add_special_tokens` adds what the base wants around a plain prompt (often a `bos` token);
    /// a rendered chat already holds it.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.tokenizer
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TextError::Encode(error.to_string()))
    }

    /// The conversation as one prompt. Encode it without adding special tokens.
    ///
    /// # Errors
    /// The base has no chat template, or the template refuses these messages.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoChatTemplate)?;
        template.render(messages, add_generation_prompt)
    }

    /// Whether [`Text::render_chat`] can work at all.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// One token as text, special tokens included, as for log-probabilities. Holds U+FFFD where
    /// the token is part of a character; empty for an id without a token.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The bytes that one token stands for; empty for an id without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id)
    }

    /// The text of a whole sequence. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id that is not below [`Text::vocab_size`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        let vocab_size = self.vocab_size();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(TextError::UnknownToken { id, vocab_size });
        }
        let bytes: Vec<u8> = ids
            .iter()
            .filter(|&&id| !(skip_special_tokens && self.token_bytes.is_special(id)))
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        let whole = match bytes.strip_prefix(b" ") {
            Some(rest) if self.token_bytes.marks_words_by_leading_space() => rest,
            _ => &bytes,
        };
        Ok(String::from_utf8_lossy(whole).into_owned())
    }

    /// Number of token ids: the largest one plus 1. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.token_bytes.len()
    }

    /// The tokens that end a text or a turn, as the tokenizer's files or the GGUF's metadata name
    /// them. The model's own configuration may name more.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text")
            .field("vocab_size", &self.vocab_size())
            .field("has_chat_template", &self.has_chat_template())
            .field("eos_token_ids", &self.eos_token_ids)
            .finish_non_exhaustive()
    }
}
