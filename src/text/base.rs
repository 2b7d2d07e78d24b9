use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::gguf_file;
use tokenizers::Tokenizer;

use super::byte_bound::ByteBound;
use super::error::TextError;
use super::template::{ChatMessage, ChatPrompt, ChatTemplate, TemplateForms};
use super::token_bytes::TokenBytes;
use super::tokenizer_parts::{TemplateSource, TokenizerParts};
use super::{gguf, hugging_face};

/// Maximum bytes of a rendered conversation.
const MAX_RENDERED_BYTES: usize = 32 << 20;

/// Tokenizer and chat template of one base. Immutable; share it by `Arc`.
pub struct Text {
    pub(super) tokenizer: Tokenizer,
    pub(super) token_bytes: TokenBytes,
    /// See [`Text::max_bytes`].
    byte_bound: Option<ByteBound>,
    template: Option<ChatTemplate>,
    eos_token_ids: Vec<u32>,
    pub(super) sources: Sources,
}

/// Parts that [`Text::save`] writes back.
pub(super) struct Sources {
    /// Name of the tokenizer's class in transformers.
    pub(super) class: String,
    /// Texts of the special tokens by role: `bos_token`, `eos_token`, ...
    pub(super) special_tokens: BTreeMap<String, String>,
    pub(super) template: Option<String>,
}

impl Text {
    /// Reads `tokenizer.json` (required), `tokenizer_config.json`, `special_tokens_map.json` and
    /// the chat template: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// A missing or malformed file, or an unsupported tokenizer or template.
    pub fn from_folder(dir: &Path) -> Result<Self, TextError> {
        Self::new(hugging_face::read(dir)?)
    }

    /// Builds the tokenizer and the chat template from a GGUF's metadata.
    ///
    /// # Errors
    /// Missing or malformed metadata, or an unsupported tokenizer or template.
    pub fn from_gguf(content: &gguf_file::Content) -> Result<Self, TextError> {
        Self::new(gguf::read(content)?)
    }

    fn new(parts: TokenizerParts) -> Result<Self, TextError> {
        let TokenizerParts {
            mut tokenizer,
            class,
            special_tokens,
            template,
            eos_token_ids,
            origin,
        } = parts;
        let unusable = |reason| TextError::Tokenizer {
            origin: origin.clone(),
            reason,
        };
        // A tokenizer file may set truncation and padding for training; serving uses neither.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| unusable(error.to_string()))?;
        let token_bytes = TokenBytes::new(&tokenizer).map_err(unusable)?;
        let sources = Sources {
            class,
            special_tokens: special_tokens.clone(),
            template: template.as_ref().map(|template| template.source.clone()),
        };
        let template = template
            .map(|TemplateSource { source, origin }| {
                ChatTemplate::new(&source, special_tokens)
                    .map_err(|reason| TextError::Template { origin, reason })
            })
            .transpose()?;
        Ok(Self {
            byte_bound: ByteBound::new(&tokenizer, &token_bytes),
            tokenizer,
            token_bytes,
            template,
            eos_token_ids,
            sources,
        })
    }

    /// Token ids of a text, which may spell out special tokens. `add_special_tokens` adds the
    /// tokens that the base expects around a plain prompt (often `bos`); a rendered chat already
    /// has them.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.tokenizer
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TextError::Encode(error.to_string()))
    }

    /// Most bytes of a text that encodes to this number of tokens; `None` if the tokenizer sets no
    /// bound, or has tokens that swallow any number of spaces beside them. A longer text need not
    /// be encoded to tell that it has more tokens.
    pub fn max_bytes(&self, tokens: usize) -> Option<usize> {
        let bound = self.byte_bound.as_ref().filter(|bound| !bound.strips())?;
        Some(bound.bytes(tokens))
    }

    /// The bytes of a text, without the white space that tokens may swallow, and the most that this
    /// number of tokens stands for, if it is more than that. Such a text need not be encoded to
    /// tell that it has more tokens.
    pub fn longer_than(&self, text: &str, tokens: usize) -> Option<(usize, usize)> {
        let bound = self.byte_bound.as_ref()?;
        let most = bound.bytes(tokens);
        if text.len() <= most {
            return None;
        }
        let bytes = bound.counted(text);
        (bytes > most).then_some((bytes, most))
    }

    /// The end of a text that has at least its last `tokens` tokens; `None` if the tokenizer sets
    /// no bound.
    pub fn end_of<'a>(&self, text: &'a str, tokens: usize) -> Option<&'a str> {
        let bound = self.byte_bound.as_ref()?;
        Some(bound.end(text, bound.bytes(tokens)))
    }

    /// Renders a conversation into one prompt. Encode it without adding special tokens.
    ///
    /// # Errors
    /// The base has no chat template, or the template refuses these messages or does not end.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        self.render_chat_within(messages, add_generation_prompt, MAX_RENDERED_BYTES)
    }

    /// [`Self::render_chat`] into at most `max_bytes` bytes.
    ///
    /// # Errors
    /// Those of [`Self::render_chat`]; [`TextError::RenderedTooLong`] as soon as the prompt is
    /// longer.
    pub fn render_chat_within(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        max_bytes: usize,
    ) -> Result<String, TextError> {
        let prompt = ChatPrompt {
            messages,
            add_generation_prompt,
            ..ChatPrompt::default()
        };
        self.render_prompt(&prompt, max_bytes)
    }

    /// Renders a conversation with its tools and variables into one prompt of at most `max_bytes`
    /// bytes. Encode it without adding special tokens. `chat::render` does the same for bases
    /// whose template knows no tools.
    ///
    /// # Errors
    /// Those of [`Self::render_chat`]; a malformed tool call; a final message that the template
    /// drops though it is to be continued; [`TextError::RenderedTooLong`] as soon as the prompt is
    /// longer.
    pub fn render_prompt(
        &self,
        prompt: &ChatPrompt,
        max_bytes: usize,
    ) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoChatTemplate)?;
        template.render(prompt, max_bytes.min(MAX_RENDERED_BYTES))
    }

    /// Source of the chat template, if the base has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.sources.template.as_deref()
    }

    /// What the chat template expects and renders; all false without a template.
    pub fn template_forms(&self) -> TemplateForms {
        let template = self.template.as_ref();
        template.map_or_else(TemplateForms::default, ChatTemplate::forms)
    }

    /// Whether the base has a chat template, which [`Text::render_chat`] needs.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Text of one token, special or not. Bytes that are only part of a character become U+FFFD; an
    /// id without a token gives an empty text.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Id of the special token with this text, if there is one.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        let id = self.tokenizer.token_to_id(text)?;
        self.token_bytes.is_special(id).then_some(id)
    }

    /// Bytes of one token; empty for an id without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes.get(id)
    }

    /// Whether a token is special, that is, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_bytes.is_special(id)
    }

    /// Text of a whole sequence. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id of [`Text::vocab_size`] or above.
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

    /// Number of token ids: the largest id plus 1. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.token_bytes.len()
    }

    /// Tokens that end a text or a turn, from the tokenizer's files or the GGUF metadata. The
    /// model's configuration may name more.
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
