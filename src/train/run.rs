//! One training run: calibrate → mask → adapt → deltas.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::backprop::{Backprop, Slot};
use super::config::{Phase, TrainConfig};
use super::error::TrainError;
use super::event::Event;
use super::learner::Learner;
use super::mask;
use super::phase::{EventLog, PhaseLoop, mean_loss};
use super::request::{Callbacks, SaveCalibrated, TrainRequest};
use super::run_folder::{RunFolder, SavedState};
use super::task_vector;
use super::trainable::Trainable;
use crate::kernels::ticket::apply;
use crate::kernels::{self, Pattern};
use crate::model::{Base, Decoder};
use crate::ticket::{BaseManifest, DeltaDtype, Metadata, TensorDelta, Ticket};

/// Result of a training run.
pub struct Trained {
    /// The trained ticket, not yet written.
    pub ticket: Ticket,
    /// Losses on the validation rows.
    pub losses: Losses,
}

/// Mean losses on the validation rows, in nats per learned token; `None` without validation rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Of the start; `None` in a resumed run.
    pub before: Option<f64>,
    /// Of the calibrated base; `None` if this run did not calibrate by moving weights.
    pub calibrated: Option<f64>,
    /// Of the start plus the ticket's rounded deltas.
    pub ticket: Option<f64>,
}

/// Trains a ticket for `base`, from the beginning or from a `saved` state.
///
/// `base` holds the resident weights, in f32, of the base that `request.start` names. Events are
/// appended to the metrics in `folder` and passed to `callbacks.observe`.
///
/// # Errors
/// See [`TrainError`]; states that were saved before the error stay in `folder`.
pub fn train(
    base: Base,
    request: &TrainRequest,
    folder: &mut RunFolder,
    saved: Option<SavedState>,
    callbacks: Callbacks,
) -> Result<Trained, TrainError> {
    let Callbacks {
        observe,
        save_calibrated,
    } = callbacks;
    let pool = kernels::Pool::new(request.threads);
    let pool = pool.map_err(|error| TrainError::Threads(error.to_string()))?;
    let (decoder, parameters) = base.into_trainable()?;
    let run = Run {
        request,
        decoder,
        parameters,
    };
    let mut log = EventLog { folder, observe };
    pool.install(|| run.train(saved, save_calibrated, &mut log))
}

/// A training run in progress.
pub struct Run<'a> {
    pub request: &'a TrainRequest<'a>,
    pub decoder: Decoder,
    /// The resident parameters, by checkpoint name; they share the decoder's storage.
    pub parameters: BTreeMap<String, Tensor>,
}

impl Run<'_> {
    fn train(
        &self,
        saved: Option<SavedState>,
        save_calibrated: &mut SaveCalibrated,
        log: &mut EventLog,
    ) -> Result<Trained, TrainError> {
        let start = &self.request.start;
        let mut losses = Losses::default();
        if start.on_top_of.is_some() {
            start.reset(&self.parameters)?;
        }
        if saved.is_none() {
            losses.before = self.valid_loss()?;
            if let Some(loss) = losses.before {
                log.record(&Event::Valid {
                    phase: None,
                    step: 0,
                    loss,
                })?;
            }
        }
        let tensors = self.deltas(saved, save_calibrated, &mut losses, log)?;
        losses.ticket = self.valid_loss_with(&tensors)?;
        let ticket = self.ticket(tensors, losses.ticket)?;
        log.record(&Event::Ticket {
            digest: ticket.digest().to_string(),
            bytes: ticket.file_bytes(),
            loss: losses.ticket,
        })?;
        Ok(Trained { ticket, losses })
    }

    /// Trains from the beginning or from a saved state; returns the deltas by parameter, rounded as
    /// the ticket will hold them.
    fn deltas(
        &self,
        saved: Option<SavedState>,
        save_calibrated: &mut SaveCalibrated,
        losses: &mut Losses,
        log: &mut EventLog,
    ) -> Result<BTreeMap<String, TensorDelta>, TrainError> {
        let (mut learner, first) = match saved {
            Some(state) if state.phase == Phase::Adapt => self.resume_adapting(state)?,
            saved => {
                let positions = self.choose_mask(saved, save_calibrated, losses, log)?;
                self.request.start.reset(&self.parameters)?;
                let learner = self.adapter(mask::patterns(self.manifest(), &positions))?;
                self.announce(Phase::Adapt, &learner, log)?;
                // The mask is the whole result of the calibration: save it before the first step.
                log.folder.save(Phase::Adapt, 0, learner.save()?)?;
                (learner, 0)
            }
        };
        let adapt = PhaseLoop::new(self, Phase::Adapt);
        adapt.run(&mut learner, first, log)?;
        self.rounded(&learner.trainable)
    }

    /// The mean loss of the validation rows under the current weights.
    fn valid_loss(&self) -> Result<Option<f64>, TrainError> {
        mean_loss(self.backprop(), self.request.valid_rows())
    }

    /// The mean loss of the validation rows under the start plus `deltas`, applied as serving
    /// applies them.
    fn valid_loss_with(
        &self,
        deltas: &BTreeMap<String, TensorDelta>,
    ) -> Result<Option<f64>, TrainError> {
        self.request.start.reset(&self.parameters)?;
        for (name, delta) in deltas {
            apply::add(&self.parameters[name], delta, 1.0)?;
        }
        self.valid_loss()
    }

    /// The ticket that holds `tensors`. Its `training` metadata is the same in every run that
    /// yields it.
    fn ticket(
        &self,
        tensors: BTreeMap<String, TensorDelta>,
        loss: Option<f64>,
    ) -> Result<Ticket, TrainError> {
        let mut training = self.request.describe();
        if let Some(object) = training.as_object_mut() {
            object.remove("base");
            object.remove("license");
            object.insert("valid_loss".to_owned(), loss.into());
        }
        let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
        let metadata = Metadata {
            license: self.request.license.clone(),
            training: Some(training),
            ..Metadata::new(&self.config().name, self.manifest(), nonzeros)
        };
        Ok(Ticket::new(metadata, tensors)?)
    }

    pub fn config(&self) -> &TrainConfig {
        &self.request.config
    }

    pub fn manifest(&self) -> &BaseManifest {
        &self.request.start.manifest
    }

    pub fn backprop(&self) -> Backprop<'_> {
        Backprop {
            decoder: &self.decoder,
            checkpointing: self.config().checkpointing,
        }
    }

    /// Records the beginning of a phase.
    pub fn announce(
        &self,
        phase: Phase,
        learner: &Learner,
        log: &mut EventLog,
    ) -> Result<(), TrainError> {
        log.record(&Event::Phase {
            phase,
            steps: self.config().phase(phase).steps,
            trained: learner.trainable.values(),
            bytes: learner.bytes(),
        })
    }

    /// Learner of the adapt phase: the positions of the mask alone.
    fn adapter(&self, patterns: BTreeMap<Slot, Pattern>) -> Result<Learner, TrainError> {
        let optimizer = self.config().optimizer;
        Ok(Learner {
            trainable: Trainable::positions(&self.decoder, patterns, optimizer)?,
            scores: None,
        })
    }

    /// Learner of a saved adapt phase, and the steps it has taken.
    fn resume_adapting(&self, state: SavedState) -> Result<(Learner, usize), TrainError> {
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
    fn rounded(&self, trainable: &Trainable) -> Result<BTreeMap<String, TensorDelta>, TrainError> {
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
