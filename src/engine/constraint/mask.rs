//! Sets of allowed tokens.

/// Tokens that may come next, as a set of bits over the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `i` of word `w` stands for token `32 * w + i`.
    words: Vec<u32>,
    may_end: bool,
}

impl TokenMask {
    /// A set of tokens: bit `i` of `words[w]` stands for token `32 * w + i`; tokens beyond are
    /// forbidden. `may_end` says whether the output may end here. The engine adds the base's
    /// end-of-text tokens then, so they need not be in the set.
    pub fn new(words: Vec<u32>, may_end: bool) -> Self {
        Self { words, may_end }
    }

    /// Whether the output may end here.
    pub fn may_end(&self) -> bool {
        self.may_end
    }

    /// Whether `token` may come next.
    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 32);
        word.is_some_and(|word| word & bit(token) != 0)
    }

    /// Whether no token may come next.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Allows these tokens too.
    pub(in crate::engine) fn allow(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let word = token as usize / 32;
            if word >= self.words.len() {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= bit(token);
        }
    }

    /// Forbids these tokens, unless no other is allowed.
    pub(in crate::engine) fn forbid_unless_last<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a u32>,
    ) {
        let mut rest = self.clone();
        for &token in tokens {
            if let Some(word) = rest.words.get_mut(token as usize / 32) {
                *word &= !bit(token);
            }
        }
        if !rest.is_empty() {
            *self = rest;
        }
    }

    /// Sets the logits `[vocab]` of forbidden tokens to −∞.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (i, logit) in logits.iter_mut().enumerate() {
                        if word >> i & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

fn bit(token: u32) -> u32 {
    1 << (token % 32)
}
