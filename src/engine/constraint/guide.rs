//! The constraint of a running sequence, whose next mask is computed while its step runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use super::workers::Slot;
use super::{Constraint, ConstraintError, MaskWorkers, TokenMask};

/// Constraint of one sequence. It depends on the sampled tokens alone: a step that is computed
/// again, after a preemption or a failure, does not touch it.
#[derive(Debug)]
pub struct Guide {
    queue: Sender<Weak<Slot>>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The mask of the next token is computed, or about to be.
    Pending(Arc<Slot>),
    /// The mask was taken, and its token is not known yet.
    Sampling(Box<dyn Constraint>),
    /// The output is complete, or the constraint has failed.
    Ended,
}

impl Guide {
    /// Starts to compute the mask of the first token.
    pub fn new(constraint: Box<dyn Constraint>, workers: &MaskWorkers) -> Self {
        let mut guide = Self {
            queue: workers.queue(),
            state: State::Ended,
        };
        guide.compute(constraint);
        guide
    }

    /// Queues the next mask.
    fn compute(&mut self, constraint: Box<dyn Constraint>) {
        let slot = Arc::new(Slot::new(constraint));
        // Without workers, the mask is computed when it is taken.
        let _ = self.queue.send(Arc::downgrade(&slot));
        self.state = State::Pending(slot);
    }

    /// Takes the mask of the next token, and waits for it if need be.
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    pub fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Pending(slot) => {
                let (constraint, mask) = slot.take();
                self.state = State::Sampling(constraint);
                mask
            }
            State::Sampling(_) | State::Ended => Err(ConstraintError::Failed),
        }
    }

    /// Appends the token that was sampled by the mask, and starts to compute the next mask. Returns
    /// whether the output is complete.
    ///
    /// # Errors
    /// As [`Constraint::accept`].
    pub fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        let State::Sampling(mut constraint) = std::mem::replace(&mut self.state, State::Ended)
        else {
            return Err(ConstraintError::Failed);
        };
        let complete = catch_unwind(AssertUnwindSafe(|| constraint.accept(token)));
        let complete = complete.unwrap_or(Err(ConstraintError::Failed))?;
        if !complete {
            self.compute(constraint);
        }
        Ok(complete)
    }
}
