//! What the tokenizer is, for clients that ask.

use std::collections::BTreeMap;

use super::base::Text;

impl Text {
    /// Name of the tokenizer's class in transformers.
    pub fn tokenizer_class(&self) -> &str {
        &self.sources.class
    }

    /// Texts of the special tokens by role: `bos_token`, `eos_token`, ...
    pub fn special_roles(&self) -> &BTreeMap<String, String> {
        &self.sources.special_tokens
    }

    /// Ids of the special tokens, ascending.
    pub fn special_ids(&self) -> impl Iterator<Item = u32> {
        let ids = 0..self.vocab_size() as u32;
        ids.filter(|&id| self.token_bytes.is_special(id))
    }

    /// One token as the vocabulary spells it, `Ġhello` for example; empty for an id without a
    /// token.
    pub fn token_spelling(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }
}
