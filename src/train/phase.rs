//! One phase: optimizer steps over batches, until they are done or an error or a stop ends them.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::backprop::Rows;
use super::batches::Batches;
use super::config::Phase;
use super::error::TrainError;
use super::event::{Event, StepReport};
use super::learner::Learner;
use super::optimizer::Update;
use super::request::Observer;
use super::run::Run;
use super::run_folder::RunFolder;
use super::schedule::Schedule;
use crate::data::Example;

/// Records the events of a run: in `metrics.jsonl`, and to the observer.
pub struct EventLog<'a> {
    pub folder: &'a mut RunFolder,
    pub observe: &'a mut Observer<'a>,
}

impl EventLog<'_> {
    /// Appends an event to the metrics and passes it to the observer.
    pub fn record(&mut self, event: &Event) -> Result<(), TrainError> {
        self.folder.log(event)?;
        (self.observe)(event);
        Ok(())
    }
}

/// The steps of one phase of a run.
pub struct PhaseLoop<'a> {
    run: &'a Run<'a>,
    phase: Phase,
    schedule: Schedule,
}

impl<'a> PhaseLoop<'a> {
    /// The loop of `phase`, with the schedule of the run's configuration.
    pub fn new(run: &'a Run<'a>, phase: Phase) -> Self {
        Self {
            run,
            phase,
            schedule: run.config().schedule(phase),
        }
    }

    /// Records the beginning of the phase.
    pub fn announce(&self, learner: &Learner, log: &mut EventLog) -> Result<(), TrainError> {
        log.record(&Event::Phase {
            phase: self.phase,
            steps: self.schedule.steps,
            trained: learner.trainable.values(),
            bytes: learner.bytes(),
        })
    }

    /// Takes the steps from number `first`, counted from 0, to the end of the phase.
    pub fn run(
        &self,
        learner: &mut Learner,
        first: usize,
        log: &mut EventLog,
    ) -> Result<(), TrainError> {
        let Self { run, phase, .. } = *self;
        let (request, config) = (run.request, run.config());
        let seed = config.shuffle.then_some(config.seed);
        let mut batches = Batches::new(&request.train.examples, seed, phase);
        for step in first..self.schedule.steps {
            let start = Instant::now();
            let rows = batches.step(step, config.rows_per_step());
            let (loss, gradient_norm) = self.gradients(learner, &rows, step, log.folder)?;
            // Save only now: finite gradients show that the steps so far did not diverge.
            let stopped = request.stop.load(Ordering::Relaxed);
            let due = step > first && is_due(step, request.save_every);
            if stopped || due {
                log.folder.save(phase, step, learner.save()?)?;
            }
            if stopped {
                return Err(TrainError::Stopped { phase, step });
            }
            let learning_rate = self.schedule.rate(step);
            learner.step(&Update {
                step: step + 1,
                learning_rate,
                weight_decay: config.weight_decay,
                scale: clip_scale(config.clip, gradient_norm),
            })?;
            let done = step + 1;
            log.record(&Event::Step(StepReport {
                phase,
                step: done,
                loss,
                learning_rate,
                gradient_norm,
                tokens: rows.iter().map(|row| row.tokens.len()).sum(),
                seconds: start.elapsed().as_secs_f64(),
            }))?;
            if done < self.schedule.steps && is_due(done, request.eval_every) {
                self.validate(done, log)?;
            }
        }
        Ok(())
    }

    /// Measures and records the loss on the validation rows after `step` steps.
    pub fn validate(&self, step: usize, log: &mut EventLog) -> Result<Option<f64>, TrainError> {
        let Some(loss) = self.run.valid_loss()? else {
            return Ok(None);
        };
        self.check_finite("loss on the validation rows", loss, step, log.folder)?;
        log.record(&Event::Valid {
            phase: Some(self.phase),
            step,
            loss,
        })?;
        Ok(Some(loss))
    }

    /// Fails if `value` shows that the run diverges.
    fn check_finite(
        &self,
        what: &'static str,
        value: f64,
        step: usize,
        folder: &RunFolder,
    ) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        Err(TrainError::NotFinite {
            what,
            value,
            phase: self.phase,
            step,
            rate: self.schedule.peak,
            saved: folder.describe_saved(),
        })
    }

    /// Accumulates the gradients of one step; returns its mean loss and the norm of the gradients.
    fn gradients(
        &self,
        learner: &mut Learner,
        examples: &[&Example],
        step: usize,
        folder: &RunFolder,
    ) -> Result<(f64, f64), TrainError> {
        let backprop = self.run.backprop();
        let learned: usize = examples.iter().map(|e| e.learned_tokens()).sum();
        let weight = 1.0 / learned as f32;
        let mut sum = 0.0;
        for batch in examples.chunks(self.run.config().batch) {
            let rows = Rows::new(batch.iter().copied());
            let losses = backprop.gradients(&rows, weight, &mut learner.trainable)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        let loss = sum / learned as f64;
        let norm = learner.trainable.gradient_norm()?;
        self.check_finite("loss", loss, step + 1, folder)?;
        self.check_finite("norm of the gradients", norm, step + 1, folder)?;
        Ok((loss, norm))
    }
}

/// Whether an action with period `every` is due after `step` steps; period 0 is never due.
fn is_due(step: usize, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// Factor that scales gradients of norm `norm` down to the norm `clip`, as PyTorch's
/// `clip_grad_norm_`.
fn clip_scale(clip: Option<f32>, norm: f64) -> f32 {
    clip.map_or(1.0, |clip| (clip / (norm as f32 + 1e-6)).min(1.0))
}
