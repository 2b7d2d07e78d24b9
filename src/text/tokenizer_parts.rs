use std::collections::BTreeMap;

use tokenizers::Tokenizer;

/// Tokenizer and template of a base as read from its files, not validated yet.
pub(super) struct TokenizerParts {
    pub tokenizer: Tokenizer,
    /// Name of its class in transformers.
    pub class: String,
    /// Texts of the special tokens by role: `bos_token`, `eos_token`, ...
    pub special_tokens: BTreeMap<String, String>,
    /// Source of the chat template.
    pub template: Option<TemplateSource>,
    /// Tokens that end a text or a turn.
    pub eos_token_ids: Vec<u32>,
    /// Where the tokenizer was found, for error messages.
    pub origin: String,
}

/// Source of a chat template.
pub(super) struct TemplateSource {
    pub source: String,
    /// Where it was found, for error messages.
    pub origin: String,
}
