//! The order in which rows are learned.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::Phase;
use crate::data::Example;

/// Rows in an order that the seed decides: each epoch all of them once, shuffled anew. The rows of a
/// step follow from its number alone, so that a resumed run sees what an uninterrupted one does.
pub struct Batches<'a> {
    examples: &'a [Example],
    /// `None` keeps the file's order.
    seed: Option<u64>,
    phase: Phase,
    /// An epoch and its order.
    order: Option<(usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// # Panics
    /// If there is no example.
    pub fn new(examples: &'a [Example], seed: Option<u64>, phase: Phase) -> Self {
        assert!(!examples.is_empty(), "there are rows to learn");
        Self {
            examples,
            seed,
            phase,
            order: None,
        }
    }

    /// The rows of step `step`, from 0, of `size` rows each.
    pub fn step(&mut self, step: usize, size: usize) -> Vec<&'a Example> {
        (step * size..(step + 1) * size)
            .map(|i| self.row(i))
            .collect()
    }

    fn row(&mut self, index: usize) -> &'a Example {
        let (epoch, place) = (index / self.examples.len(), index % self.examples.len());
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.order = Some((epoch, self.shuffled(epoch)));
        }
        let (_, order) = self.order.as_ref().expect("made above");
        &self.examples[order[place]]
    }

    fn shuffled(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        if let Some(seed) = self.seed {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream((epoch as u64) << 1 | u64::from(self.phase == Phase::Adapt));
            order.shuffle(&mut rng);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(n: usize) -> Vec<Example> {
        let example = |line| Example {
            line,
            tokens: vec![1, 2],
            learned: std::iter::once(1..2).collect(),
            answer: None,
        };
        (0..n).map(example).collect()
    }

    fn lines(batches: &mut Batches, steps: std::ops::Range<usize>) -> Vec<usize> {
        let rows = steps.flat_map(|step| batches.step(step, 4));
        rows.map(|example| example.line).collect()
    }

    #[test]
    fn an_epoch_holds_every_row_once_and_the_next_is_another_order() {
        let examples = examples(10);
        let mut batches = Batches::new(&examples, Some(7), Phase::Adapt);
        let rows = lines(&mut batches, 0..5);
        let sorted = |rows: &[usize]| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            rows
        };
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(sorted(&rows[..10]), all);
        assert_eq!(sorted(&rows[10..]), all);
        assert_ne!(rows[..10], rows[10..]);
    }

    #[test]
    fn a_step_follows_from_its_number_seed_and_phase() {
        let examples = examples(10);
        let of = |seed, phase| {
            let mut batches = Batches::new(&examples, Some(seed), phase);
            lines(&mut batches, 3..6)
        };
        let mut from_the_start = Batches::new(&examples, Some(7), Phase::Adapt);
        let all = lines(&mut from_the_start, 0..6);
        assert_eq!(of(7, Phase::Adapt), all[12..]);
        assert_ne!(of(8, Phase::Adapt), all[12..]);
        assert_ne!(of(7, Phase::Calibrate), all[12..]);
    }

    #[test]
    fn unshuffled_rows_come_as_they_stand() {
        let examples = examples(6);
        let mut batches = Batches::new(&examples, None, Phase::Adapt);
        assert_eq!(lines(&mut batches, 0..2), [0, 1, 2, 3, 4, 5, 0, 1]);
    }
}
