//! The rows of one pass: whole sequences, concatenated without padding.

use std::ops::Range;

use crate::data::Example;

/// The tokens of one pass through the decoder, and the targets of the learned ones.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Range of rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    /// Rows whose next token is learned, ascending.
    pub learned: Vec<u32>,
    /// The next token of each row in `learned`.
    pub targets: Vec<u32>,
}

impl Rows {
    /// The rows of `examples`. The last token of each has no next token and gets no row.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut rows = Self::default();
        for example in examples {
            rows.push(&example.tokens, &example.learned);
        }
        rows
    }

    /// Appends a sequence; `learned` holds the positions of the learned tokens, without 0.
    pub fn push(&mut self, tokens: &[u32], learned: &[Range<usize>]) {
        let first = self.tokens.len();
        let end = learned.iter().map(|range| range.end).max().unwrap_or(0);
        // Tokens after the last learned one do not affect the loss.
        let rows = end.saturating_sub(1);
        self.tokens.extend(&tokens[..rows]);
        self.positions.extend(0..rows as u32);
        self.sequences.push(first..first + rows);
        for position in learned.iter().cloned().flatten() {
            self.learned.push((first + position - 1) as u32);
            self.targets.push(tokens[position]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_learns_the_next_token() {
        let mut rows = Rows::default();
        rows.push(&[5, 6, 7, 8], std::slice::from_ref(&(2..4)));
        rows.push(&[1, 2, 3, 4, 9], &[1..2, 3..4]);
        assert_eq!(rows.tokens, [5, 6, 7, 1, 2, 3]);
        assert_eq!(rows.positions, [0, 1, 2, 0, 1, 2]);
        assert_eq!(rows.sequences, [0..3, 3..6]);
        assert_eq!(rows.learned, [1, 2, 3, 5]);
        assert_eq!(rows.targets, [7, 8, 2, 4]);
    }
}
