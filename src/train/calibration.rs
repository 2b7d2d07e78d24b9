//! The choice of the mask: scores of the weights, from a calibration phase if one is needed.

use std::collections::BTreeMap;

use super::backprop::Slot;
use super::config::{Phase, Score};
use super::error::TrainError;
use super::event::Event;
use super::learner::Learner;
use super::mask::{self, Positions, Scores};
use super::phase::{EventLog, PhaseLoop};
use super::request::{MaskSource, SaveCalibrated};
use super::run::{Losses, Run};
use super::run_folder::SavedState;
use super::trainable::Trainable;
use crate::ticket::top_k::top_k_positions;

impl Run<'_> {
    /// Chooses the positions to train, calibrating first if the score needs it.
    pub fn choose_mask(
        &self,
        saved: Option<SavedState>,
        save_calibrated: &mut SaveCalibrated,
        losses: &mut Losses,
        log: &mut EventLog,
    ) -> Result<Positions, TrainError> {
        let positions = match &self.request.mask {
            MaskSource::Ticket(ticket) => mask::of_ticket(ticket, self.manifest()),
            MaskSource::Checkpoint { checkpoint, .. } => {
                let shapes = &self.manifest().parameters;
                let tuned = |name: &str| Ok(checkpoint.load(name, &shapes[name].shape)?);
                self.top_scores(mask::task_vector(&self.request.start, tuned)?)?
            }
            MaskSource::Score => {
                let scores = self.calibrate(saved, save_calibrated, losses, log)?;
                self.top_scores(scores)?
            }
        };
        let kept = |(name, kept): (&String, &Vec<usize>)| {
            let weights = self.manifest().parameters[name].shape.iter().product();
            (name.clone(), (kept.len(), weights))
        };
        log.record(&Event::Mask {
            parameters: positions.iter().map(kept).collect(),
        })?;
        Ok(positions)
    }

    /// The share of the weights with the highest scores, without the positions to avoid.
    fn top_scores(&self, mut scores: Scores) -> Result<Positions, TrainError> {
        for ticket in &self.request.avoid {
            mask::exclude(&mut scores, ticket, self.manifest());
        }
        let density = self.config().density;
        let positions = top_k_positions(&scores, density, self.config().scope)?;
        if positions.values().all(Vec::is_empty) {
            return Err(TrainError::EmptyMask { density });
        }
        Ok(positions)
    }

    /// Scores of every adaptable weight, by the configured score.
    fn calibrate(
        &self,
        saved: Option<SavedState>,
        save_calibrated: &mut SaveCalibrated,
        losses: &mut Losses,
        log: &mut EventLog,
    ) -> Result<Scores, TrainError> {
        let config = self.config();
        if config.score == Score::Random {
            return Ok(mask::random(self.manifest(), config.seed));
        }
        let calibrate = PhaseLoop::new(self, Phase::Calibrate);
        let mut learner = self.calibrator()?;
        let first = match saved {
            Some(state) => {
                learner.restore(&state)?;
                state.step
            }
            None => {
                calibrate.announce(&learner, log)?;
                0
            }
        };
        calibrate.run(&mut learner, first, log)?;
        let start = &self.request.start;
        if let Some(sums) = &learner.scores {
            return mask::gradients(start, sums, config.score == Score::Saliency);
        }
        // The optimizer state is twice as large as the base: free it before the next allocation.
        drop(learner);
        losses.calibrated = calibrate.validate(config.calibrate.steps, log)?;
        save_calibrated(&self.parameters).map_err(TrainError::SaveCalibrated)?;
        let tuned = |name: &str| Ok(self.parameters[name].clone());
        mask::task_vector(start, tuned)
    }

    /// Learner of the calibrate phase: moves every weight, or only sums gradients.
    fn calibrator(&self) -> Result<Learner, TrainError> {
        let frozen = mask::patterns(self.manifest(), &self.avoided());
        if self.config().score == Score::TaskVector {
            let optimizer = Some(self.config().optimizer);
            return Ok(Learner {
                trainable: Trainable::whole(&self.decoder, frozen, optimizer)?,
                scores: None,
            });
        }
        let sum = |slot: Slot| {
            let weight = slot.tensor(self.decoder.weights());
            Ok((slot, weight.expect("a slot of this decoder").zeros_like()?))
        };
        let sums = mask::slots(self.manifest()).map(sum);
        Ok(Learner {
            trainable: Trainable::whole(&self.decoder, frozen, None)?,
            scores: Some(sums.collect::<candle_core::Result<_>>()?),
        })
    }

    /// The positions of all tickets to avoid.
    fn avoided(&self) -> Positions {
        let mut avoided: BTreeMap<String, Vec<usize>> = Positions::new();
        for ticket in &self.request.avoid {
            for (name, more) in mask::of_ticket(ticket, self.manifest()) {
                let positions = avoided.entry(name).or_default();
                positions.extend(more);
                positions.sort_unstable();
                positions.dedup();
            }
        }
        avoided
    }
}
