//! Tokens that a request forbids: all but the allowed ones, and the ends of bad words.

use std::sync::Arc;

use crate::engine::request::SamplingParams;

/// The forbidden tokens of one sequence.
#[derive(Debug)]
pub(super) struct Forbidden {
    allowed: Option<Arc<[u32]>>,
    bad_words: Arc<[Vec<u32>]>,
    /// Tokens of the longest bad word before its last one.
    prefix: usize,
    /// The last `prefix` generated tokens.
    recent: Vec<u32>,
}

impl Forbidden {
    /// The forbidden tokens before the first one is generated.
    pub fn new(params: &SamplingParams) -> Self {
        let longest = params.bad_words.iter().map(Vec::len).max().unwrap_or(0);
        Self {
            allowed: params.allowed_token_ids.clone(),
            bad_words: Arc::clone(&params.bad_words),
            prefix: longest.saturating_sub(1),
            recent: Vec::new(),
        }
    }

    /// Whether no token is ever forbidden.
    pub fn is_empty(&self) -> bool {
        self.allowed.is_none() && self.bad_words.is_empty()
    }

    /// Records a generated token.
    pub fn record(&mut self, token: u32) {
        if self.prefix > 0 {
            if self.recent.len() == self.prefix {
                self.recent.remove(0);
            }
            self.recent.push(token);
        }
    }

    /// Sets the logits `[vocab]` of the forbidden tokens to −∞.
    pub fn mask(&self, logits: &mut [f32]) {
        if let Some(allowed) = &self.allowed {
            let mut allowed = allowed.iter().copied().peekable();
            for (id, logit) in (0u32..).zip(logits.iter_mut()) {
                if allowed.next_if_eq(&id).is_none() {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for word in &*self.bad_words {
            if let Some((&last, before)) = word.split_last()
                && self.recent.ends_with(before)
                && let Some(logit) = logits.get_mut(last as usize)
            {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(forbidden: &Forbidden) -> Vec<usize> {
        let mut logits = [0.0; 6];
        forbidden.mask(&mut logits);
        (0..6).filter(|&id| logits[id] == 0.0).collect()
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let params = SamplingParams {
            allowed_token_ids: Some([1, 4, 9].into()),
            ..SamplingParams::default()
        };
        assert_eq!(kept(&Forbidden::new(&params)), [1, 4]);
    }

    #[test]
    fn the_last_token_of_a_bad_word_is_forbidden_after_the_others() {
        let params = SamplingParams {
            bad_words: [vec![5], vec![1, 2], vec![1, 2, 3]].into(),
            ..SamplingParams::default()
        };
        let mut forbidden = Forbidden::new(&params);
        assert_eq!(kept(&forbidden), [0, 1, 2, 3, 4]);
        forbidden.record(1);
        assert_eq!(kept(&forbidden), [0, 1, 3, 4]);
        // As if the bias towards 2 were stronger than the ban.
        forbidden.record(2);
        assert_eq!(kept(&forbidden), [0, 1, 2, 4]);
        forbidden.record(4);
        assert_eq!(kept(&forbidden), [0, 1, 2, 3, 4]);
    }
}
