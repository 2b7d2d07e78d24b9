//! Threads that compute masks beside the steps, and the slots that they compute them in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::{Constraint, ConstraintError, TokenMask};

/// Computed mask, with the constraint that it comes from.
pub type Computed = (Box<dyn Constraint>, Result<TokenMask, ConstraintError>);

/// Threads that compute masks in the order of their requests. Dropping them ends and joins them.
#[derive(Debug)]
pub struct MaskWorkers {
    /// `None` once they are dropped.
    queue: Option<Sender<Weak<Slot>>>,
    threads: Vec<JoinHandle<()>>,
}

impl MaskWorkers {
    /// Starts `threads` threads. With none, each mask is computed by the thread that waits for it.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads).map(|_| {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new().name("masks".to_owned());
            thread.spawn(move || work(&receiver))
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            queue: Some(sender),
        })
    }

    /// Queue to hand to guides.
    pub(super) fn queue(&self) -> Sender<Weak<Slot>> {
        self.queue.clone().expect("the workers run until dropped")
    }
}

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // Constraints that panic are caught in `compute`.
            let _ = thread.join();
        }
    }
}

/// Computes queued masks until the queue is closed. Slots whose sequence has ended are gone.
fn work(queue: &Mutex<Receiver<Weak<Slot>>>) {
    loop {
        let slot = lock(queue).recv();
        match slot.map(|slot| slot.upgrade()) {
            Ok(Some(slot)) => slot.compute(),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// Place of one mask on its way.
#[derive(Debug)]
pub struct Slot {
    state: Mutex<State>,
    computed: Condvar,
}

#[derive(Debug)]
enum State {
    Queued(Box<dyn Constraint>),
    Computing,
    Computed(Computed),
    Taken,
}

impl Slot {
    /// A slot whose mask is not begun.
    pub fn new(constraint: Box<dyn Constraint>) -> Self {
        Self {
            state: Mutex::new(State::Queued(constraint)),
            computed: Condvar::new(),
        }
    }

    /// Computes the mask, unless that was begun.
    fn compute(&self) {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Computing) {
            State::Queued(constraint) => {
                drop(state);
                let computed = compute(constraint);
                *lock(&self.state) = State::Computed(computed);
                self.computed.notify_one();
            }
            other => *state = other,
        }
    }

    /// Takes the mask: waits if it is being computed, and computes it if that was not begun.
    pub fn take(&self) -> Computed {
        let mut state = lock(&self.state);
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Queued(constraint) => {
                    drop(state);
                    return compute(constraint);
                }
                State::Computed(computed) => return computed,
                State::Computing => {
                    *state = State::Computing;
                    let woken = self.computed.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
                State::Taken => unreachable!("a mask is taken once"),
            }
        }
    }
}

/// Computes a mask. A constraint that panics has failed.
fn compute(mut constraint: Box<dyn Constraint>) -> Computed {
    let mask = catch_unwind(AssertUnwindSafe(|| constraint.mask()));
    let mask = mask.unwrap_or(Err(ConstraintError::Failed));
    (constraint, mask)
}

/// Locks, whatever happened to others that held the lock: no state is left half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
