//! The trainer: calibrate → mask → adapt → ticket.

use std::collections::BTreeMap;

use super::config::Phase;
use super::error::TrainError;
use super::event::Event;
use super::mask;
use super::phase::{EventLog, PhaseLoop};
use super::request::{Callbacks, SaveCalibrated, TrainRequest};
use super::run::{Losses, Run};
use super::run_folder::{RunFolder, SavedState};
use crate::kernels;
use crate::model::Base;
use crate::ticket::{Metadata, TensorDelta, Ticket};

/// Result of a training run.
pub struct Trained {
    /// The trained ticket, not yet written.
    pub ticket: Ticket,
    /// Losses on the validation rows.
    pub losses: Losses,
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
        let adapt = PhaseLoop::new(self, Phase::Adapt);
        let (mut learner, first) = match saved {
            Some(state) if state.phase == Phase::Adapt => self.resume_adapting(state)?,
            saved => {
                let positions = self.choose_mask(saved, save_calibrated, losses, log)?;
                self.request.start.reset(&self.parameters)?;
                let learner = self.adapter(mask::patterns(self.manifest(), &positions))?;
                adapt.announce(&learner, log)?;
                // The mask is the whole result of the calibration: save it before the first step.
                log.folder.save(Phase::Adapt, 0, learner.save()?)?;
                (learner, 0)
            }
        };
        adapt.run(&mut learner, first, log)?;
        self.rounded(&learner.trainable)
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
}
