//! What happened in a run, put in order.

use std::collections::BTreeMap;

use super::super::config::Phase;
use super::super::event::{Event, StepReport};

/// The events of a run. Where something was told twice, as after a resume, the last word counts.
#[derive(Default)]
pub struct History<'a> {
    /// Loss of the validation rows before anything was trained.
    pub before: Option<f64>,
    pub phases: BTreeMap<Phase, PhaseHistory>,
    /// Weights kept of each parameter, and how many it has.
    pub mask: Option<&'a BTreeMap<String, (usize, usize)>>,
    pub ticket: Option<Written<'a>>,
}

/// The ticket that the run wrote.
pub struct Written<'a> {
    pub digest: &'a str,
    pub bytes: u64,
    /// Loss of the validation rows.
    pub loss: Option<f64>,
}

/// One phase of a run.
#[derive(Default)]
pub struct PhaseHistory {
    /// Steps, weights trained and bytes of their state, where the beginning was told.
    pub start: Option<(usize, usize, usize)>,
    pub steps: BTreeMap<usize, StepReport>,
    /// Losses of the validation rows, by steps taken.
    pub valid: BTreeMap<usize, f64>,
}

impl<'a> History<'a> {
    pub fn new(events: &'a [Event]) -> Self {
        let mut history = Self::default();
        for event in events {
            history.take(event);
        }
        history
    }

    fn take(&mut self, event: &'a Event) {
        match event {
            Event::Phase {
                phase,
                steps,
                trained,
                bytes,
            } => self.phase(*phase).start = Some((*steps, *trained, *bytes)),
            Event::Step(step) => {
                self.phase(step.phase).steps.insert(step.step, *step);
            }
            Event::Valid { phase, step, loss } => match phase {
                None => self.before = Some(*loss),
                Some(phase) => {
                    self.phase(*phase).valid.insert(*step, *loss);
                }
            },
            Event::Mask { parameters } => self.mask = Some(parameters),
            Event::Ticket {
                digest,
                bytes,
                loss,
            } => {
                self.ticket = Some(Written {
                    digest,
                    bytes: *bytes,
                    loss: *loss,
                });
            }
        }
    }

    fn phase(&mut self, phase: Phase) -> &mut PhaseHistory {
        self.phases.entry(phase).or_default()
    }

    /// Loss of the validation rows under the calibrated base.
    pub fn calibrated(&self) -> Option<f64> {
        let calibrate = self.phases.get(&Phase::Calibrate)?;
        let (steps, ..) = calibrate.start?;
        calibrate.valid.get(&steps).copied()
    }

    /// Loss of the validation rows under the ticket.
    pub fn ticket_loss(&self) -> Option<f64> {
        self.ticket.as_ref().and_then(|ticket| ticket.loss)
    }

    /// The last look at the validation rows while adapting: steps taken, and the loss.
    pub fn last_look(&self) -> Option<(usize, f64)> {
        let looks = &self.phases.get(&Phase::Adapt)?.valid;
        looks.last_key_value().map(|(step, loss)| (*step, *loss))
    }

    /// Weights in the mask, and weights that could have been.
    pub fn kept(&self) -> Option<(usize, usize)> {
        let parameters = self.mask?.values();
        Some(parameters.fold((0, 0), |sum, (kept, all)| (sum.0 + kept, sum.1 + all)))
    }
}

impl PhaseHistory {
    /// Steps that the phase has, taken or not.
    pub fn planned(&self) -> usize {
        let planned = self.start.map_or(0, |(steps, ..)| steps);
        planned.max(self.steps.keys().next_back().copied().unwrap_or(0))
    }

    /// Bytes of gradients, optimizer state and masters.
    pub fn bytes(&self) -> Option<usize> {
        self.start.map(|(_, _, bytes)| bytes)
    }

    pub fn tokens(&self) -> usize {
        self.steps.values().map(|step| step.tokens).sum()
    }

    pub fn seconds(&self) -> f64 {
        self.steps.values().map(|step| step.seconds).sum()
    }
}
