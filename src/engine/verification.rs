//! Verification of the base: its digest, hashed in slices between steps. All who ask meanwhile
//! share the answer.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::runner::Runner;
use crate::model::{ModelError, SlicedDigest};
use crate::ticket::Digest;

/// Share of the engine's time that a verification takes while sequences run.
const SHARE: f64 = 0.1;

/// Shortest and longest slice on the bare base while sequences run.
const SLICE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(5));

/// Slice between two looks at the inbox while no sequence runs.
const IDLE_SLICE: Duration = Duration::from_millis(20);

/// The verification in progress.
#[derive(Debug, Default)]
pub struct Verification {
    answers: Vec<oneshot::Sender<Digest>>,
    digest: SlicedDigest,
    /// Time that steps have earned for the next slice.
    credit: Duration,
}

impl Verification {
    /// Adds a caller. The first one begins a verification; the others share it.
    pub fn ask(&mut self, answer: oneshot::Sender<Digest>) {
        self.answers.push(answer);
    }

    /// Whether a caller still waits. If none does, the verification is given up.
    pub fn is_pending(&mut self) -> bool {
        self.answers.retain(|answer| !answer.is_closed());
        if self.answers.is_empty() {
            *self = Self::default();
        }
        !self.answers.is_empty()
    }

    /// Length of the slice that is due after a step that took `step`; `None` if none is yet.
    /// `swap` is the time of reverting the applied ticket and applying it again, zero for the bare
    /// base: a slice has to be worth its swap.
    pub fn due_after(&mut self, step: Duration, swap: Duration) -> Option<Duration> {
        self.credit += step.mul_f64(SHARE);
        if self.credit < 2 * swap + SLICE.0 {
            return None;
        }
        let slice = std::mem::take(&mut self.credit) - swap;
        Some(slice.min(swap.max(SLICE.1)))
    }

    /// Length of a slice while no sequence runs.
    pub fn idle_slice() -> Duration {
        IDLE_SLICE
    }

    /// Hashes for about `slice`, at least one piece. The base has to be bare. Answers all callers
    /// when it is done.
    ///
    /// # Errors
    /// The values cannot be read; the callers get no answer.
    pub fn advance(&mut self, runner: &Runner, slice: Duration) -> Result<(), ModelError> {
        let start = Instant::now();
        loop {
            let digest = runner.advance_digest(&mut self.digest).inspect_err(|_| {
                *self = Self::default();
            })?;
            if let Some(digest) = digest {
                for answer in std::mem::take(self).answers {
                    // The caller may have stopped waiting.
                    let _ = answer.send(digest);
                }
                return Ok(());
            }
            if start.elapsed() >= slice {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn slices_take_a_tenth_of_the_time_and_only_pay_for_swaps_that_are_worth_it() {
        let mut bare = Verification::default();
        assert_eq!(bare.due_after(5 * MS, Duration::ZERO), None);
        assert_eq!(bare.due_after(15 * MS, Duration::ZERO), Some(2 * MS));
        assert_eq!(bare.due_after(500 * MS, Duration::ZERO), Some(5 * MS));
        let mut applied = Verification::default();
        let swap = 9 * MS;
        let steps = (1..).find_map(|n| Some((n, applied.due_after(10 * MS, swap)?)));
        let (steps, slice) = steps.unwrap();
        // 19 ms of 190 ms: 9 ms for the swap, and the rest hashes.
        assert_eq!((steps, slice), (19, 9 * MS));
    }

    #[test]
    fn a_verification_that_nobody_waits_for_is_given_up() {
        let mut verification = Verification::default();
        let (answer, asked) = oneshot::channel();
        verification.ask(answer);
        assert!(verification.is_pending());
        drop(asked);
        assert!(!verification.is_pending());
    }
}
