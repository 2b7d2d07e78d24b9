//! One phase: steps over batches, until they are done or something ends them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Tensor;

use super::backprop::{Backprop, Rows, Slot};
use super::batches::Batches;
use super::config::{Phase, TrainConfig};
use super::error::TrainError;
use super::event::{Event, StepReport};
use super::job::Observe;
use super::optimizer::Update;
use super::run_folder::{RunFolder, SavedState};
use super::trainable::Trainable;
use crate::data::Example;
use crate::kernels::training::accumulate;

/// What a step does with its gradients.
pub struct Learner {
    pub trainable: Trainable,
    /// Sums of absolute gradients: then nothing is moved.
    pub scores: Option<BTreeMap<Slot, Tensor>>,
}

impl Learner {
    /// What a later run goes on with, by name.
    pub fn save(&self) -> candle_core::Result<Vec<(String, Tensor)>> {
        let Some(scores) = &self.scores else {
            return self.trainable.save();
        };
        let named = |(slot, sum): (&Slot, &Tensor)| (format!("{slot}.score"), sum.clone());
        Ok(scores.iter().map(named).collect())
    }

    /// Bytes of what is kept besides the weights.
    pub fn bytes(&self) -> usize {
        let scores = self.scores.iter().flat_map(BTreeMap::values);
        let scores = scores.map(|sum| sum.elem_count() * sum.dtype().size_in_bytes());
        self.trainable.bytes() + scores.sum::<usize>()
    }

    /// Takes over what [`Self::save`] gave.
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

    fn step(&mut self, update: &Update) -> candle_core::Result<()> {
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

/// Where a run tells what happens.
pub struct Log<'a> {
    pub folder: &'a mut RunFolder,
    pub observe: &'a mut Observe<'a>,
}

impl Log<'_> {
    pub fn tell(&mut self, event: &Event) -> Result<(), TrainError> {
        self.folder.log(event)?;
        (self.observe)(event);
        Ok(())
    }
}

/// What the steps of a phase need besides what they train.
pub struct PhaseLoop<'a> {
    pub config: &'a TrainConfig,
    pub phase: Phase,
    pub backprop: Backprop<'a>,
    pub examples: &'a [Example],
    pub valid: &'a [Example],
    /// Steps between looks at the validation rows; 0: none.
    pub eval_every: usize,
    /// Steps between saves.
    pub save_every: usize,
    /// Set from outside when the run is to end.
    pub stop: &'a AtomicBool,
}

impl PhaseLoop<'_> {
    /// Takes the steps from `first` on.
    pub fn run(
        &self,
        learner: &mut Learner,
        first: usize,
        log: &mut Log,
    ) -> Result<(), TrainError> {
        let (phase, steps) = (self.phase, self.config.phase(self.phase).steps);
        let schedule = self.config.schedule(phase);
        let seed = self.config.shuffle.then_some(self.config.seed);
        let mut batches = Batches::new(self.examples, seed, phase);
        for step in first..steps {
            let start = Instant::now();
            let rows = batches.step(step, self.config.rows_per_step());
            let (loss, gradient_norm) = self.gradients(learner, &rows, step, log.folder)?;
            // What the steps so far gave is known to be finite only now.
            let stopped = self.stop.load(Ordering::Relaxed);
            let due = self.save_every > 0 && step > first && step.is_multiple_of(self.save_every);
            if stopped || due {
                log.folder.save(phase, step, learner.save()?)?;
            }
            if stopped {
                return Err(TrainError::Stopped { phase, step });
            }
            let learning_rate = schedule.rate(step);
            // As PyTorch's `clip_grad_norm_`.
            let clip = self.config.clip;
            let clip = clip.map(|most| most / (gradient_norm as f32 + 1e-6));
            learner.step(&Update {
                step: step + 1,
                learning_rate,
                weight_decay: self.config.weight_decay,
                scale: clip.map_or(1.0, |scale| scale.min(1.0)),
            })?;
            log.tell(&Event::Step(StepReport {
                phase,
                step: step + 1,
                loss,
                learning_rate,
                gradient_norm,
                tokens: rows.iter().map(|row| row.tokens.len()).sum(),
                seconds: start.elapsed().as_secs_f64(),
            }))?;
            let done = step + 1;
            if self.eval_every > 0 && done.is_multiple_of(self.eval_every) && done < steps {
                self.look(done, log)?;
            }
        }
        Ok(())
    }

    /// Measures the validation rows' loss after `step` steps.
    pub fn look(&self, step: usize, log: &mut Log) -> Result<Option<f64>, TrainError> {
        let Some(loss) = mean_loss(self.backprop, self.valid)? else {
            return Ok(None);
        };
        self.check("loss on the validation rows", loss, step, log.folder)?;
        log.tell(&Event::Valid {
            phase: Some(self.phase),
            step,
            loss,
        })?;
        Ok(Some(loss))
    }

    /// Ends a run that diverges.
    fn check(
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
            rate: self.config.phase(self.phase).learning_rate,
            kept: folder.kept(),
        })
    }

    /// Adds up a step's gradients; gives its mean loss and their norm.
    fn gradients(
        &self,
        learner: &mut Learner,
        examples: &[&Example],
        step: usize,
        folder: &RunFolder,
    ) -> Result<(f64, f64), TrainError> {
        let learned: usize = examples.iter().map(|e| e.learned_tokens()).sum();
        let mut sum = 0.0;
        for batch in examples.chunks(self.config.batch) {
            let rows = Rows::new(batch.iter().copied());
            let weight = 1.0 / learned as f32;
            let losses = self
                .backprop
                .gradients(&rows, weight, &mut learner.trainable)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        let loss = sum / learned as f64;
        let norm = learner.trainable.gradient_norm()?;
        self.check("loss", loss, step + 1, folder)?;
        self.check("norm of the gradients", norm, step + 1, folder)?;
        Ok((loss, norm))
    }
}

/// Rows that go through the decoder at once where no gradient is wanted.
const ROWS: usize = 1024;

/// The mean loss of the learned tokens of some rows, in nats; `None` where there are none.
pub fn mean_loss(backprop: Backprop, examples: &[Example]) -> Result<Option<f64>, TrainError> {
    let (mut sum, mut count) = (0.0, 0usize);
    let mut rows = Rows::default();
    for (i, example) in examples.iter().enumerate() {
        rows.push(&example.tokens, &example.learned);
        if rows.tokens.len() >= ROWS || i + 1 == examples.len() {
            let losses = backprop.losses(&rows)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            count += losses.len();
            rows = Rows::default();
        }
    }
    Ok((count > 0).then(|| sum / count as f64))
}
