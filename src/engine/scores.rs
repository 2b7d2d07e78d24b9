//! What a request wants to know of its own prompt: how likely the model finds its tokens.

use std::ops::Range;

use rayon::prelude::*;

use super::sampler::logprob;

/// Log-probabilities of a prompt's tokens, collected chunk by chunk.
#[derive(Debug)]
pub struct PromptScores {
    /// The positions asked for, ascending.
    positions: Vec<usize>,
    /// What is known so far: of the first positions.
    logprobs: Vec<f32>,
}

impl PromptScores {
    /// `ranges` are ascending and disjoint, and none holds 0; `None` where they hold nothing.
    pub fn new(ranges: &[Range<usize>]) -> Option<Self> {
        let positions: Vec<usize> = ranges.iter().cloned().flatten().collect();
        (!positions.is_empty()).then(|| Self {
            logprobs: Vec::with_capacity(positions.len()),
            positions,
        })
    }

    /// The positions that the `computed` ones give the logits of: row p − 1 scores position p. What
    /// is known already is not asked for again where a sequence is computed again.
    pub fn due(&self, computed: Range<usize>) -> &[usize] {
        let pending = &self.positions[self.logprobs.len()..];
        &pending[..pending.partition_point(|&position| position <= computed.end)]
    }

    /// Takes in the `rows` of logits of the positions that are due; false where a row holds no
    /// finite number.
    pub fn take(&mut self, computed: Range<usize>, rows: &mut [Vec<f32>], tokens: &[u32]) -> bool {
        let due = self.due(computed).par_iter().zip(rows);
        let scored: Option<Vec<f32>> = due
            .map(|(&position, row)| logprob(row, tokens[position]))
            .collect();
        let Some(scored) = scored else { return false };
        self.logprobs.extend(scored);
        true
    }

    /// The log-probabilities of all positions, in their order.
    pub fn finish(self) -> Vec<f32> {
        debug_assert_eq!(self.logprobs.len(), self.positions.len());
        self.logprobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in which token 1 is the likelier the further on.
    fn rows(positions: &[usize]) -> Vec<Vec<f32>> {
        let row = |&position: &usize| vec![0.0, position as f32];
        positions.iter().map(row).collect()
    }

    #[test]
    fn nothing_asked_is_nothing_kept() {
        assert!(PromptScores::new(&[]).is_none());
        assert!(PromptScores::new(&[3..3, 5..5]).is_none());
    }

    #[test]
    fn a_position_is_scored_once_however_often_it_is_computed() {
        let tokens = [1; 12];
        let mut scores = PromptScores::new(&[1..3, 6..8, 11..12]).unwrap();
        assert_eq!(scores.due(0..1), [1]);
        assert_eq!(scores.due(0..6), [1, 2, 6]);
        assert!(scores.take(0..6, &mut rows(&[1, 2, 6]), &tokens));
        // Preempted, and computed again in chunks of another size.
        assert!(scores.due(0..4).is_empty());
        assert!(scores.take(0..4, &mut [], &tokens));
        assert_eq!(scores.due(4..8), [7]);
        assert!(scores.take(4..8, &mut rows(&[7]), &tokens));
        assert!(scores.due(8..10).is_empty());
        assert!(scores.take(10..12, &mut rows(&[11]), &tokens));
        let want = [1, 2, 6, 7, 11].map(|position: i32| -(-f64::from(position)).exp().ln_1p());
        for (got, want) in scores.finish().into_iter().zip(want) {
            assert!((f64::from(got) - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn a_row_without_a_finite_number_is_told() {
        let mut scores = PromptScores::new(&[1..2, 2..3]).unwrap();
        let mut rows = vec![vec![0.0, 1.0], vec![f32::NAN, f32::INFINITY]];
        assert!(!scores.take(0..2, &mut rows, &[0, 1, 1]));
    }
}
