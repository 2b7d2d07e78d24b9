//! Log-probabilities of the tokens of a prompt.

use std::ops::Range;

use rayon::prelude::*;

use super::request::TokenLogprobs;
use super::sampler::token_logprobs;

/// Requested log-probabilities of a prompt, collected chunk by chunk.
#[derive(Debug)]
pub struct PromptScores {
    /// Requested positions, ascending.
    positions: Vec<usize>,
    /// Log-probabilities computed so far, of the first positions.
    logprobs: Vec<TokenLogprobs>,
    /// Alternatives per position.
    top: usize,
}

impl PromptScores {
    /// Scores the positions of `ranges`, which ascend, are disjoint and do not hold 0, with `top`
    /// alternatives each. Returns `None` if they are empty.
    pub fn new(ranges: &[Range<usize>], top: usize) -> Option<Self> {
        let positions: Vec<usize> = ranges.iter().cloned().flatten().collect();
        (!positions.is_empty()).then(|| Self {
            logprobs: Vec::with_capacity(positions.len()),
            positions,
            top,
        })
    }

    /// Position of the first token whose row scores.
    pub fn first_row(&self) -> usize {
        self.positions[0] - 1
    }

    /// Pending positions that the rows `computed` score: row p − 1 scores position p. A position is
    /// scored once, even if its sequence is preempted and computed again.
    pub fn pending(&self, computed: Range<usize>) -> &[usize] {
        let pending = &self.positions[self.logprobs.len()..];
        &pending[..pending.partition_point(|&position| position <= computed.end)]
    }

    /// Records a row of logits `[vocab]` for each [pending](Self::pending) position. Returns false
    /// if a row has no finite logit.
    pub fn record(
        &mut self,
        computed: Range<usize>,
        rows: &mut [Vec<f32>],
        tokens: &[u32],
    ) -> bool {
        let pending = self.pending(computed).par_iter().zip(rows);
        let scored: Option<Vec<_>> = pending
            .map(|(&position, row)| token_logprobs(row, tokens[position], self.top))
            .collect();
        let Some(scored) = scored else { return false };
        self.logprobs.extend(scored);
        true
    }

    /// Log-probabilities of all positions, in their order.
    pub fn finish(self) -> Vec<TokenLogprobs> {
        debug_assert_eq!(self.logprobs.len(), self.positions.len());
        self.logprobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of logits; token 1 is more likely at later positions.
    fn rows(positions: &[usize]) -> Vec<Vec<f32>> {
        let row = |&position: &usize| vec![0.0, position as f32];
        positions.iter().map(row).collect()
    }

    #[test]
    fn empty_ranges_score_nothing() {
        assert!(PromptScores::new(&[], 0).is_none());
        assert!(PromptScores::new(&[3..3, 5..5], 0).is_none());
    }

    #[test]
    fn a_position_is_scored_once_however_often_it_is_computed() {
        let tokens = [1; 12];
        let mut scores = PromptScores::new(&[1..3, 6..8, 11..12], 1).unwrap();
        assert_eq!(scores.pending(0..1), [1]);
        assert_eq!(scores.pending(0..6), [1, 2, 6]);
        assert!(scores.record(0..6, &mut rows(&[1, 2, 6]), &tokens));
        // The sequence is preempted, and computed again in chunks of another size.
        assert!(scores.pending(0..4).is_empty());
        assert!(scores.record(0..4, &mut [], &tokens));
        assert_eq!(scores.pending(4..8), [7]);
        assert!(scores.record(4..8, &mut rows(&[7]), &tokens));
        assert!(scores.pending(8..10).is_empty());
        assert!(scores.record(10..12, &mut rows(&[11]), &tokens));
        let want = [1, 2, 6, 7, 11].map(|position: i32| -(-f64::from(position)).exp().ln_1p());
        for (got, want) in scores.finish().into_iter().zip(want) {
            let chosen = got.chosen;
            assert!((f64::from(chosen) - want).abs() < 1e-6, "{chosen} {want}");
            assert_eq!((got.rank, got.top), (1, vec![(1, chosen)]));
        }
    }

    #[test]
    fn a_row_without_a_finite_logit_is_refused() {
        let mut scores = PromptScores::new(&[1..2, 2..3], 0).unwrap();
        let mut rows = vec![vec![0.0, 1.0], vec![f32::NAN, f32::INFINITY]];
        assert!(!scores.record(0..2, &mut rows, &[0, 1, 1]));
    }
}
