//! The adapt phase: its learner and its trained deltas.

use std::collections::BTreeMap;

use candle_core::DType;

use super::backprop::Slot;
use super::error::TrainError;
use super::learner::Learner;
use super::run::Run;
use super::run_folder::SavedState;
use super::trainable::Trainable;
use super::{mask, task_vector};
use crate::kernels::Pattern;
use crate::ticket::{DeltaDtype, TensorDelta};

impl Run<'_> {
    /// Learner of the adapt phase: the positions of the mask alone.
    pub fn adapter(&self, patterns: BTreeMap<Slot, Pattern>) -> Result<Learner, TrainError> {
        let optimizer = self.config().optimizer;
        Ok(Learner {
            trainable: Trainable::positions(&self.decoder, patterns, optimizer)?,
            scores: None,
        })
    }

    /// Learner of a saved adapt phase, and the steps it has taken.
    pub fn resume_adapting(&self, state: SavedState) -> Result<(Learner, usize), TrainError> {
        let mut patterns = BTreeMap::new();
        for slot in mask::slots(self.manifest()) {
            let name = format!("{slot}.positions");
            if !state.has(&name) {
                continue;
            }
            let weight = slot.tensor(self.decoder.weights());
            let [rows, width] = weight.expect("a slot of this decoder").dims2()?.into();
            let positions = state.tensor(&name)?.to_vec1::<u32>()?;
            let positions: Vec<usize> = positions.iter().map(|&p| p as usize).collect();
            patterns.insert(slot, Pattern::from_flat([rows, width], &positions));
        }
        let mut learner = self.adapter(patterns)?;
        learner.restore(&state)?;
        Ok((learner, state.step))
    }

    /// The ticket's deltas: trained values minus those of the start, rounded to bf16.
    pub fn rounded(
        &self,
        trainable: &Trainable,
    ) -> Result<BTreeMap<String, TensorDelta>, TrainError> {
        let mut tensors = BTreeMap::new();
        for (slot, pattern, values) in trainable.trained() {
            let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let mut trained = pattern.flat().zip(values).peekable();
            for (name, first, rows) in mask::parts(slot, self.manifest()) {
                let before = self.request.start.parameter(&name)?;
                let before = before.flatten_all()?.to_vec1::<f32>()?;
                let (start, end) = (first * pattern.width(), (first + rows) * pattern.width());
                let (mut positions, mut deltas) = (Vec::new(), Vec::new());
                while let Some((at, value)) = trained.next_if(|(at, _)| *at < end) {
                    positions.push(at - start);
                    deltas.push(value - before[at - start]);
                }
                if positions.is_empty() {
                    continue;
                }
                let shape = [rows, pattern.width()];
                let dtype = DeltaDtype::Bf16;
                let delta = task_vector::delta(&name, shape, &positions, deltas, dtype)?;
                tensors.insert(name, delta);
            }
        }
        Ok(tensors)
    }
}
