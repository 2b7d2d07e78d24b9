//! Pooled hidden states of a prompt, which requests for embeddings get instead of tokens.

use std::ops::Range;

/// Which hidden states of a prompt, after the final norm, become its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token: the only one that has attended to the whole prompt.
    Last,
    /// The mean of all.
    Mean,
}

/// Hidden states of a prompt, pooled chunk by chunk.
#[derive(Debug)]
pub struct Pooled {
    /// Position of the first token whose hidden state is pooled; those of all later ones are.
    first: usize,
    /// Tokens of the prompt.
    tokens: usize,
    /// Sum of the hidden states pooled so far; empty before the first.
    sum: Vec<f64>,
    /// Position of the token whose hidden state is pooled next.
    next: usize,
}

impl Pooled {
    /// Pools a prompt of `tokens` tokens, at least one.
    pub fn new(pooling: Pooling, tokens: usize) -> Self {
        let first = match pooling {
            Pooling::Last => tokens - 1,
            Pooling::Mean => 0,
        };
        Self {
            first,
            tokens,
            sum: Vec::new(),
            next: first,
        }
    }

    /// Position of the first token whose row is pooled.
    pub fn first_row(&self) -> usize {
        self.first
    }

    /// Positions of the rows `computed` that are still to be pooled. A row is pooled once, even if
    /// its sequence is preempted and computed again.
    pub fn pending(&self, computed: Range<usize>) -> Range<usize> {
        debug_assert!(computed.start <= self.next || computed.is_empty());
        self.next..computed.end.max(self.next)
    }

    /// Adds the hidden states of the next rows, in their order. Returns whether all are pooled.
    pub fn record(&mut self, rows: &[Vec<f32>]) -> bool {
        for row in rows {
            self.sum.resize(row.len(), 0.0);
            for (sum, &value) in self.sum.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
        }
        self.next += rows.len();
        self.next == self.tokens
    }

    /// The vector; `None` if one of its numbers is not finite.
    pub fn finish(self) -> Option<Vec<f32>> {
        debug_assert_eq!(self.next, self.tokens);
        let count = (self.tokens - self.first) as f64;
        let mean = |sum: f64| (sum / count) as f32;
        let vector: Vec<f32> = self.sum.into_iter().map(mean).collect();
        vector.iter().all(|x| x.is_finite()).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden states of some positions.
    fn rows(positions: Range<usize>) -> Vec<Vec<f32>> {
        positions
            .map(|p| vec![p as f32, 1.0 / (p as f32 + 1.0)])
            .collect()
    }

    #[test]
    fn the_last_row_alone_is_pooled_by_default() {
        let mut pooled = Pooled::new(Pooling::Last, 5);
        assert_eq!(pooled.first_row(), 4);
        assert!(pooled.pending(0..4).is_empty());
        assert!(!pooled.record(&[]));
        assert_eq!(pooled.pending(4..5), 4..5);
        assert!(pooled.record(&rows(4..5)));
        assert_eq!(pooled.finish().unwrap(), rows(4..5)[0]);
    }

    #[test]
    fn a_row_is_pooled_once_however_often_it_is_computed() {
        let mut whole = Pooled::new(Pooling::Mean, 9);
        assert!(whole.record(&rows(0..9)));
        let mut chunks = Pooled::new(Pooling::Mean, 9);
        assert_eq!(chunks.pending(0..4), 0..4);
        assert!(!chunks.record(&rows(0..4)));
        // The sequence is preempted, and computed again in chunks of another size.
        assert!(chunks.pending(0..3).is_empty());
        assert_eq!(chunks.pending(3..6), 4..6);
        assert!(!chunks.record(&rows(4..6)));
        assert!(chunks.record(&rows(6..9)));
        assert_eq!(chunks.finish(), whole.finish());
    }

    #[test]
    fn a_vector_that_is_not_finite_is_refused() {
        let mut pooled = Pooled::new(Pooling::Mean, 2);
        assert!(pooled.record(&[vec![1.0, f32::NAN], vec![1.0, 1.0]]));
        assert_eq!(pooled.finish(), None);
    }
}
