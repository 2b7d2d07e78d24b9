//! The events of a run, indexed for the report.

use std::collections::BTreeMap;

use super::super::config::Phase;
use super::super::event::{Event, StepReport};

/// The events of a run. If an event was recorded twice, as after a resume, the last one counts.
#[derive(Default)]
pub struct History<'a> {
    /// Validation loss before training.
    pub before: Option<f64>,
    pub phases: BTreeMap<Phase, PhaseHistory>,
    /// Weights in the mask and weights in total, by parameter.
    pub mask: Option<&'a BTreeMap<String, (usize, usize)>>,
    pub ticket: Option<WrittenTicket<'a>>,
}

/// The ticket that the run wrote.
pub struct WrittenTicket<'a> {
    pub digest: &'a str,
    pub bytes: u64,
    /// Validation loss.
    pub loss: Option<f64>,
}

/// The beginning of a phase; see [`Event::Phase`].
#[derive(Clone, Copy)]
pub struct PhaseStart {
    pub steps: usize,
    pub trained: usize,
    pub bytes: usize,
}

/// One phase of a run.
#[derive(Default)]
pub struct PhaseHistory {
    /// `None` if the beginning of the phase was not recorded.
    pub start: Option<PhaseStart>,
    /// Steps by number, from 1.
    pub steps: BTreeMap<usize, StepReport>,
    /// Validation losses by number of steps taken.
    pub valid: BTreeMap<usize, f64>,
}

impl<'a> History<'a> {
    /// Indexes the events of a run, in order.
    pub fn new(events: &'a [Event]) -> Self {
        let mut history = Self::default();
        for event in events {
            history.add(event);
        }
        history
    }

    fn add(&mut self, event: &'a Event) {
        match event {
            Event::Phase {
                phase,
                steps,
                trained,
                bytes,
            } => {
                self.phase(*phase).start = Some(PhaseStart {
                    steps: *steps,
                    trained: *trained,
                    bytes: *bytes,
                });
            }
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
                self.ticket = Some(WrittenTicket {
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

    /// Validation loss of the calibrated base.
    pub fn calibrated(&self) -> Option<f64> {
        let calibrate = self.phases.get(&Phase::Calibrate)?;
        calibrate.valid.get(&calibrate.start?.steps).copied()
    }

    /// Validation loss of the ticket.
    pub fn ticket_loss(&self) -> Option<f64> {
        self.ticket.as_ref().and_then(|ticket| ticket.loss)
    }

    /// The last validation of the adapt phase: steps taken and loss.
    pub fn last_validation(&self) -> Option<(usize, f64)> {
        let losses = &self.phases.get(&Phase::Adapt)?.valid;
        losses.last_key_value().map(|(step, loss)| (*step, *loss))
    }

    /// Weights in the mask, and weights of the parameters it covers.
    pub fn kept(&self) -> Option<(usize, usize)> {
        let parameters = self.mask?.values();
        Some(parameters.fold((0, 0), |sum, (kept, all)| (sum.0 + kept, sum.1 + all)))
    }
}

impl PhaseHistory {
    /// Steps of the phase, taken or not.
    pub fn planned(&self) -> usize {
        let planned = self.start.map_or(0, |start| start.steps);
        planned.max(self.steps.keys().next_back().copied().unwrap_or(0))
    }

    /// Bytes of gradients, optimizer state and f32 masters.
    pub fn bytes(&self) -> Option<usize> {
        self.start.map(|start| start.bytes)
    }

    /// Tokens of all steps taken.
    pub fn tokens(&self) -> usize {
        self.steps.values().map(|step| step.tokens).sum()
    }

    /// Wall-clock time of all steps taken.
    pub fn seconds(&self) -> f64 {
        self.steps.values().map(|step| step.seconds).sum()
    }
}
