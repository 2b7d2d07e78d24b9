//! The order of the training rows.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::Phase;
use crate::data::Example;

/// Batches of rows, reshuffled each epoch in an order determined by the seed. The rows of a step
/// depend only on its number, so that a resumed run sees the same rows as an uninterrupted one.
pub struct Batches<'a> {
    examples: &'a [Example],
    /// `None` keeps the order of the file.
    seed: Option<u64>,
    phase: Phase,
    /// Number and row order of the current epoch.
    order: Option<(usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// # Panics
    /// If `examples` is empty.
    pub fn new(examples: &'a [Example], seed: Option<u64>, phase: Phase) -> Self {
        assert!(!examples.is_empty(), "a dataset has at least one row");
        Self {
            examples,
            seed,
            phase,
            order: None,
        }
    }

    /// The rows of step `step`, counted from 0, with `size` rows per step.
    pub fn step(&mut self, step: usize, size: usize) -> Vec<&'a Example> {
        (step * size..(step + 1) * size)
            .map(|i| self.row(i))
            .collect()
    }

    fn row(&mut self, index: usize) -> &'a Example {
        let (epoch, offset) = (index / self.examples.len(), index % self.examples.len());
        if self
            .order
            .as_ref()
            .is_none_or(|(current, _)| *current != epoch)
        {
            self.order = Some((epoch, self.shuffled(epoch)));
        }
        let (_, order) = self.order.as_ref().expect("set above");
        &self.examples[order[offset]]
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
    fn an_epoch_holds_every_row_once_and_the_next_one_is_reshuffled() {
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
    fn the_rows_of_a_step_depend_on_its_number_seed_and_phase() {
        let examples = examples(10);
        let rows = |seed, phase| {
            let mut batches = Batches::new(&examples, Some(seed), phase);
            lines(&mut batches, 3..6)
        };
        let mut batches = Batches::new(&examples, Some(7), Phase::Adapt);
        let all = lines(&mut batches, 0..6);
        assert_eq!(rows(7, Phase::Adapt), all[12..]);
        assert_ne!(rows(8, Phase::Adapt), all[12..]);
        assert_ne!(rows(7, Phase::Calibrate), all[12..]);
    }

    #[test]
    fn unshuffled_rows_keep_the_order_of_the_file() {
        let examples = examples(6);
        let mut batches = Batches::new(&examples, None, Phase::Adapt);
        assert_eq!(lines(&mut batches, 0..2), [0, 1, 2, 3, 4, 5, 0, 1]);
    }
}
