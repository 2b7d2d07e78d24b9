//! Prompts that insert text between a prefix and a suffix, for bases trained to fill in the middle.

use super::base::Text;
use super::error::TextError;

/// Spellings of the tokens before the prefix, before the suffix, and before the middle, which the
/// base generates.
const SPELLINGS: &[[&str; 3]] = &[
    // StarCoder.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // SantaCoder.
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    // Qwen2.5-Coder, CodeGemma.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // CodeLlama.
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    // DeepSeek-Coder.
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    // GLM.
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
];

impl Text {
    /// Token ids of a prompt that asks for the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// The base has no tokens for that, or a text cannot be encoded.
    pub fn encode_infill(
        &self,
        prefix: &str,
        suffix: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TextError> {
        let marks = SPELLINGS.iter().find_map(|spelling| {
            let [before_prefix, before_suffix, before_middle] =
                spelling.map(|token| self.tokenizer.token_to_id(token));
            Some([before_prefix?, before_suffix?, before_middle?])
        });
        let [before_prefix, before_suffix, before_middle] = marks.ok_or(TextError::NoInfill)?;
        let mut ids = self.encode("", add_special_tokens)?;
        ids.push(before_prefix);
        ids.extend(self.encode(prefix, false)?);
        ids.push(before_suffix);
        ids.extend(self.encode(suffix, false)?);
        ids.push(before_middle);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::AddedToken;

    use super::super::tests::byte_level_text;
    use super::*;

    #[test]
    fn the_marks_stand_before_their_texts() {
        let mut text = byte_level_text("gpt-2");
        let refused = text.encode_infill("a", "b", true).unwrap_err();
        assert!(matches!(refused, TextError::NoInfill), "{refused}");
        let marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
        let marks = marks.map(|mark| AddedToken::from(mark, true));
        text.tokenizer.add_special_tokens(marks.clone()).unwrap();
        let ids = text.encode_infill("a", "b", false).unwrap();
        let spelled: Vec<_> = ids
            .iter()
            .map(|&id| text.tokenizer.id_to_token(id).unwrap())
            .collect();
        let [prefix, suffix, middle] = marks.map(|mark| mark.content);
        assert_eq!(spelled, [&prefix, "a", &suffix, "b", &middle]);
    }
}
