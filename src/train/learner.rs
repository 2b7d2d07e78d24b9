//! The learner of a phase: moves weights by the gradients of a step, or sums them as scores.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::backprop::Slot;
use super::error::TrainError;
use super::optimizer::Update;
use super::run_folder::SavedState;
use super::trainable::Trainable;
use crate::kernels::training::accumulate;

/// The trained tensors of a phase and, if the phase only scores them, the scores.
pub struct Learner {
    /// The trained tensors, with their gradients.
    pub trainable: Trainable,
    /// Sums of absolute gradients by slot. If present, a step adds to them and moves no weight.
    pub scores: Option<BTreeMap<Slot, Tensor>>,
}

impl Learner {
    /// The tensors that a resumed run needs, by name.
    pub fn save(&self) -> candle_core::Result<Vec<(String, Tensor)>> {
        let Some(scores) = &self.scores else {
            return self.trainable.save();
        };
        let named = |(slot, sum): (&Slot, &Tensor)| (format!("{slot}.score"), sum.clone());
        Ok(scores.iter().map(named).collect())
    }

    /// Restores the tensors of [`Self::save`].
    pub fn restore(&mut self, state: &SavedState) -> Result<(), TrainError> {
        let Some(scores) = &self.scores else {
            return self.trainable.restore(|name| state.tensor(name));
        };
        for (slot, sum) in scores {
            let saved = state.tensor(&format!("{slot}.score"))?;
            sum.slice_set(&saved.to_device(sum.device())?, 0, 0)?;
        }
        Ok(())
    }

    /// Bytes held in addition to the weights.
    pub fn bytes(&self) -> usize {
        let scores = self.scores.iter().flat_map(BTreeMap::values);
        let scores = scores.map(|sum| sum.elem_count() * sum.dtype().size_in_bytes());
        self.trainable.bytes() + scores.sum::<usize>()
    }

    /// Consumes the gradients of one step.
    pub fn step(&mut self, update: &Update) -> candle_core::Result<()> {
        match &self.scores {
            None => self.trainable.step(update),
            Some(scores) => self
                .trainable
                .drain(|slot, gradient| match scores.get(&slot) {
                    Some(sum) => accumulate::add_absolute(sum, gradient),
                    None => Ok(()),
                }),
        }
    }
}
