//! Prompts of an exact number of tokens, for any tokenizer.

use rand::SeedableRng;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

use super::BenchError;
use crate::text::Text;

/// Words that are one token each.
pub struct Words {
    first: Vec<String>,
    /// With the space before them.
    rest: Vec<String>,
}

impl Words {
    /// The words of a tokenizer's vocabulary.
    ///
    /// # Errors
    /// There are none, or they do not stay single tokens in a text.
    pub fn new(text: &Text) -> Result<Self, BenchError> {
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
            return Err(BenchError::Words(first.len(), rest.len()));
        }
        let words = Self { first, rest };
        let wanted = 256;
        let tokens = text.encode(&words.prompt(0, 0, wanted), false);
        let found = tokens.map_err(|error| BenchError::Encode(error.to_string()))?;
        if found.len() != wanted {
            let found = found.len();
            return Err(BenchError::PromptTokens { wanted, found });
        }
        Ok(words)
    }

    /// Prompt number `i`: so many tokens, other ones for every seed and number.
    pub fn prompt(&self, seed: u64, i: u64, tokens: usize) -> String {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(i);
        let pools = std::iter::once(&self.first).chain(std::iter::repeat(&self.rest));
        let words = pools.take(tokens).filter_map(|pool| pool.choose(&mut rng));
        words.map(String::as_str).collect()
    }
}

fn is_word(text: &str) -> bool {
    (4..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
}
