//! Prompts with an exact number of tokens, for any tokenizer.

use rand::SeedableRng;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

use super::error::LoadError;
use crate::text::Text;

/// Words of a tokenizer that are one token each.
pub struct PromptWords {
    /// Words that begin a text.
    first: Vec<String>,
    /// Words with a space before them.
    rest: Vec<String>,
}

impl PromptWords {
    /// Collects the words of a tokenizer's vocabulary.
    ///
    /// # Errors
    /// There are none, or they do not stay single tokens in a sequence.
    pub fn new(text: &Text) -> Result<Self, LoadError> {
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for id in 0..text.vocab_size() as u32 {
            let token = text.token_text(id);
            match token.strip_prefix(' ') {
                Some(word) if is_word(word) => rest.push(token),
                None if is_word(&token) => first.push(token),
                _ => {}
            }
        }
        first.sort();
        rest.sort();
        if first.is_empty() || rest.is_empty() {
            return Err(LoadError::Words {
                first: first.len(),
                rest: rest.len(),
            });
        }
        let words = Self { first, rest };
        let wanted = 256;
        let found = text
            .encode(&words.prompt(0, 0, wanted), false)
            .map_err(|error| LoadError::Encode(error.to_string()))?
            .len();
        if found != wanted {
            return Err(LoadError::PromptTokens { wanted, found });
        }
        Ok(words)
    }

    /// Prompt number `i`, of this many tokens; they differ for each seed and number.
    pub fn prompt(&self, seed: u64, i: u64, tokens: usize) -> String {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(i);
        let pools = std::iter::once(&self.first).chain(std::iter::repeat(&self.rest));
        pools
            .take(tokens)
            .filter_map(|pool| pool.choose(&mut rng))
            .map(String::as_str)
            .collect()
    }
}

fn is_word(text: &str) -> bool {
    (4..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
}
