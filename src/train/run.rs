//! The method itself: calibrate → mask → adapt → deltas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Tensor};

use super::backprop::{Backprop, Slot};
use super::config::{Phase, Score, TrainConfig};
use super::error::TrainError;
use super::event::Event;
use super::job::{Keep, Losses, MaskSource};
use super::mask::{self, Positions, Scores};
use super::phase::{Learner, Log, PhaseLoop, mean_loss};
use super::run_folder::SavedState;
use super::start::Start;
use super::trainable::Trainable;
use crate::data::Example;
use crate::kernels::Pattern;
use crate::kernels::ticket::apply;
use crate::model::Decoder;
use crate::ticket::select::top_share;
use crate::ticket::{BaseManifest, BoundTicket, DeltaDtype, Deltas, TensorDelta};

/// A run under way.
pub struct Run<'a> {
    pub config: &'a TrainConfig,
    pub start: &'a Start<'a>,
    pub decoder: &'a Decoder,
    /// The resident parameters, by checkpoint name.
    pub parameters: &'a BTreeMap<String, Tensor>,
    pub train: &'a [Example],
    pub valid: &'a [Example],
    pub mask: &'a MaskSource<'a>,
    pub avoid: &'a [Arc<BoundTicket>],
    pub eval_every: usize,
    pub save_every: usize,
    pub stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Trains from the beginning or from where a run was saved; gives the deltas by parameter, rounded
    /// as the ticket will hold them.
    pub fn deltas(
        &self,
        saved: Option<SavedState>,
        keep: &mut Keep,
        losses: &mut Losses,
        log: &mut Log,
    ) -> Result<BTreeMap<String, TensorDelta>, TrainError> {
        let (mut learner, first) = match saved {
            Some(state) if state.phase == Phase::Adapt => self.resume_adapting(state)?,
            saved => {
                let positions = self.choose(saved, keep, losses, log)?;
                self.start.reset(self.parameters)?;
                let patterns = mask::patterns(self.manifest(), &positions);
                let learner = self.adapter(patterns)?;
                self.announce(Phase::Adapt, &learner, log)?;
                // The mask is all that the calibration was for: from here on it is not lost.
                log.folder.save(Phase::Adapt, 0, learner.save()?)?;
                (learner, 0)
            }
        };
        let steps = self.steps(Phase::Adapt);
        steps.run(&mut learner, first, log)?;
        self.rounded(&learner.trainable)
    }

    /// The mean loss of the validation rows under the weights as they are.
    pub fn loss(&self) -> Result<Option<f64>, TrainError> {
        mean_loss(self.backprop(), self.valid)
    }

    /// The mean loss of the validation rows under deltas on top of what training starts from, with the
    /// formula that serving applies them by.
    pub fn loss_of(
        &self,
        deltas: &BTreeMap<String, TensorDelta>,
    ) -> Result<Option<f64>, TrainError> {
        self.start.reset(self.parameters)?;
        for (name, delta) in deltas {
            apply::add(&self.parameters[name], delta, 1.0)?;
        }
        self.loss()
    }

    fn manifest(&self) -> &BaseManifest {
        &self.start.manifest
    }

    fn backprop(&self) -> Backprop<'_> {
        Backprop {
            decoder: self.decoder,
            checkpointing: self.config.checkpointing,
        }
    }

    fn steps(&self, phase: Phase) -> PhaseLoop<'_> {
        PhaseLoop {
            config: self.config,
            phase,
            backprop: self.backprop(),
            examples: self.train,
            valid: self.valid,
            eval_every: self.eval_every,
            save_every: self.save_every,
            stop: self.stop,
        }
    }

    fn announce(&self, phase: Phase, learner: &Learner, log: &mut Log) -> Result<(), TrainError> {
        log.tell(&Event::Phase {
            phase,
            steps: self.config.phase(phase).steps,
            trained: learner.trainable.values(),
            bytes: learner.bytes(),
        })
    }

    /// The positions that are trained.
    fn choose(
        &self,
        saved: Option<SavedState>,
        keep: &mut Keep,
        losses: &mut Losses,
        log: &mut Log,
    ) -> Result<Positions, TrainError> {
        let positions = match self.mask {
            MaskSource::Ticket(ticket) => mask::of_ticket(ticket, self.manifest()),
            MaskSource::Checkpoint { checkpoint, .. } => {
                let shapes = &self.manifest().parameters;
                let tuned = |name: &str| Ok(checkpoint.load(name, &shapes[name].shape)?);
                self.select(mask::task_vector(self.start, tuned)?)?
            }
            MaskSource::Score => {
                let scores = self.calibrate(saved, keep, losses, log)?;
                self.select(scores)?
            }
        };
        let kept = |(name, kept): (&String, &Vec<usize>)| {
            let weights = self.manifest().parameters[name].shape.iter().product();
            (name.clone(), (kept.len(), weights))
        };
        log.tell(&Event::Mask {
            parameters: positions.iter().map(kept).collect(),
        })?;
        Ok(positions)
    }

    fn select(&self, mut scores: Scores) -> Result<Positions, TrainError> {
        for ticket in self.avoid {
            mask::exclude(&mut scores, ticket, self.manifest());
        }
        let positions = top_share(&scores, self.config.density, self.config.scope)?;
        if positions.values().all(Vec::is_empty) {
            return Err(TrainError::EmptyMask {
                density: self.config.density,
            });
        }
        Ok(positions)
    }

    /// Scores of every adaptable weight, by what the configuration ranks them by.
    fn calibrate(
        &self,
        saved: Option<SavedState>,
        keep: &mut Keep,
        losses: &mut Losses,
        log: &mut Log,
    ) -> Result<Scores, TrainError> {
        let score = self.config.score;
        if score == Score::Random {
            return Ok(mask::random(self.manifest(), self.config.seed));
        }
        let mut learner = self.calibrator(score)?;
        let first = match saved {
            Some(state) => {
                learner.restore(&state)?;
                state.step
            }
            None => {
                self.announce(Phase::Calibrate, &learner, log)?;
                0
            }
        };
        let steps = self.steps(Phase::Calibrate);
        steps.run(&mut learner, first, log)?;
        if let Some(sums) = &learner.scores {
            return mask::gradients(self.start, sums, score == Score::Saliency);
        }
        // Its state is as large as the base twice, and no longer wanted.
        drop(learner);
        losses.calibrated = steps.look(self.config.calibrate.steps, log)?;
        keep(self.parameters).map_err(TrainError::Keep)?;
        let tuned = |name: &str| Ok(self.parameters[name].clone());
        mask::task_vector(self.start, tuned)
    }

    /// What calibrates: moves every weight, or sums gradients.
    fn calibrator(&self, score: Score) -> Result<Learner, TrainError> {
        let mut frozen: BTreeMap<String, Vec<usize>> = Positions::new();
        for ticket in self.avoid {
            for (name, more) in mask::of_ticket(ticket, self.manifest()) {
                let all = frozen.entry(name).or_default();
                all.extend(more);
                all.sort_unstable();
                all.dedup();
            }
        }
        let frozen = mask::patterns(self.manifest(), &frozen);
        if score == Score::TaskVector {
            let optimizer = Some(self.config.optimizer);
            let trainable = Trainable::whole(self.decoder, frozen, optimizer)?;
            return Ok(Learner {
                trainable,
                scores: None,
            });
        }
        let trainable = Trainable::whole(self.decoder, frozen, None)?;
        let slots = mask::slots(self.manifest());
        let sum = |slot: Slot| {
            let weight = slot.tensor(self.decoder.weights()).expect("a slot of it");
            Ok((slot, weight.zeros_like()?))
        };
        Ok(Learner {
            trainable,
            scores: Some(slots.map(sum).collect::<candle_core::Result<_>>()?),
        })
    }

    fn adapter(&self, patterns: BTreeMap<Slot, Pattern>) -> Result<Learner, TrainError> {
        Ok(Learner {
            trainable: Trainable::positions(self.decoder, patterns, self.config.optimizer)?,
            scores: None,
        })
    }

    fn resume_adapting(&self, state: SavedState) -> Result<(Learner, usize), TrainError> {
        let mut patterns = BTreeMap::new();
        for slot in mask::slots(self.manifest()) {
            let name = format!("{slot}.positions");
            if !state.has(&name) {
                continue;
            }
            let weight = slot.tensor(self.decoder.weights()).expect("a slot of it");
            let positions = state.tensor(&name)?.to_vec1::<u32>()?;
            let positions: Vec<usize> = positions.iter().map(|&p| p as usize).collect();
            let (rows, width) = weight.dims2()?;
            patterns.insert(slot, Pattern::from_flat([rows, width], &positions));
        }
        let mut learner = self.adapter(patterns)?;
        learner.restore(&state)?;
        Ok((learner, state.step))
    }

    /// Trained values less those that training started from, rounded to bf16.
    fn rounded(&self, trainable: &Trainable) -> Result<BTreeMap<String, TensorDelta>, TrainError> {
        let mut tensors = BTreeMap::new();
        for (slot, pattern, values) in trainable.trained() {
            let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let mut all = pattern.flat().zip(values).peekable();
            for (name, first, rows) in mask::parts(slot, self.manifest()) {
                let before = self
                    .start
                    .parameter(&name)?
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let (start, end) = (first * pattern.width(), (first + rows) * pattern.width());
                let (mut positions, mut deltas) = (Vec::new(), Vec::new());
                while let Some((at, value)) = all.next_if(|(at, _)| *at < end) {
                    positions.push(at - start);
                    deltas.push(value - before[at - start]);
                }
                if positions.is_empty() {
                    continue;
                }
                let deltas = Deltas::from_f32(deltas, DeltaDtype::Bf16);
                let delta = TensorDelta::from_flat([rows, pattern.width()], &positions, deltas);
                let delta = delta.map_err(|fault| crate::ticket::TicketError::Delta {
                    parameter: name.clone(),
                    fault,
                })?;
                tensors.insert(name, delta);
            }
        }
        Ok(tensors)
    }
}
