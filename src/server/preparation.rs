//! Budget of the bytes of request bodies that are parsed, rendered and tokenised at the same time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::shares::{Party, Shared};
use crate::access::Shortage;

/// Bytes of bodies under preparation at once, in each lane. Tokenising takes up to some 300 bytes
/// of memory per byte of text.
const LANE_BYTES: usize = 1 << 20;
/// Largest body of the fast lane. Longer ones wait for each other, never before shorter ones.
const SHORT_BYTES: usize = 64 << 10;
/// Bytes of one permit of a lane.
const UNIT: usize = 1 << 10;

/// Turns of bodies to be prepared: two lanes, so that long prompts never delay short ones.
#[derive(Debug)]
pub struct Preparation {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    waiting: Shared,
}

impl Preparation {
    /// A budget that at most `max_waiting` requests wait for.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            short: Arc::new(Semaphore::new(LANE_BYTES / UNIT)),
            long: Arc::new(Semaphore::new(LANE_BYTES / UNIT)),
            waiting: Shared::new(max_waiting),
        }
    }

    /// Waits for the turn of a body of this many bytes, in order of arrival. A body of more than
    /// the whole lane is prepared alone in it. The turn ends when the permit is dropped: move it
    /// into the work, which goes on if its client disconnects.
    ///
    /// # Errors
    /// [`ApiError::QueueFull`] or [`ApiError::ShareFull`] if too many requests wait, of all or of
    /// this party.
    pub async fn turn(
        &self,
        party: &Party,
        bytes: usize,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let lane = if bytes <= SHORT_BYTES {
            &self.short
        } else {
            &self.long
        };
        let permits = bytes.min(LANE_BYTES).div_ceil(UNIT).max(1) as u32;
        if let Ok(turn) = lane.clone().try_acquire_many_owned(permits) {
            return Ok(turn);
        }
        let retry_after = 1;
        let mut waiting = self.waiting.share(party);
        waiting.grow(1).map_err(|shortage| match shortage {
            Shortage::Full => ApiError::QueueFull { retry_after },
            Shortage::Share => ApiError::ShareFull { retry_after },
        })?;
        let turn = lane.clone().acquire_many_owned(permits).await;
        drop(waiting);
        turn.map_err(|_| ApiError::EngineStopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn long_bodies_take_turns_and_short_ones_pass_them() {
        let budget = Preparation::new(1);
        let first = budget.turn(&None, 8 << 20).await.unwrap();
        let mut second = Box::pin(budget.turn(&None, 8 << 20));
        assert!(second.as_mut().now_or_never().is_none());
        // One place to wait: a third is refused, short bodies are not concerned.
        assert!(matches!(
            budget.turn(&None, 8 << 20).await,
            Err(ApiError::QueueFull { .. })
        ));
        assert!(budget.turn(&None, 1000).await.is_ok());
        drop(first);
        let second = second.await.unwrap();
        // A waiting request whose client goes gives its place back.
        let mut third = Box::pin(budget.turn(&None, 8 << 20));
        assert!(third.as_mut().now_or_never().is_none());
        drop(third);
        let mut fourth = Box::pin(budget.turn(&None, 8 << 20));
        assert!(fourth.as_mut().now_or_never().is_none());
        drop((second, fourth));
        assert_eq!(budget.waiting.taken(), 0);
    }

    #[tokio::test]
    async fn bodies_that_fit_together_do_not_wait() {
        let budget = Preparation::new(0);
        let turns =
            futures_util::future::join_all((0..16).map(|_| budget.turn(&None, 64 << 10))).await;
        assert!(turns.iter().all(Result::is_ok));
        assert!(matches!(
            budget.turn(&None, 1).await,
            Err(ApiError::QueueFull { .. })
        ));
        drop(turns);
        assert!(budget.turn(&None, 0).await.is_ok());
    }

    #[tokio::test]
    async fn one_tenant_does_not_take_every_place_to_wait() {
        let budget = Preparation::new(10);
        let (acme, beta) = (Some("acme".parse().unwrap()), Some("beta".parse().unwrap()));
        let _running = budget.turn(&acme, 8 << 20).await.unwrap();
        let mut waiting: Vec<_> = (0..8)
            .map(|_| Box::pin(budget.turn(&acme, 8 << 20)))
            .collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().now_or_never().is_none());
        }
        assert!(matches!(
            budget.turn(&acme, 8 << 20).await,
            Err(ApiError::ShareFull { .. })
        ));
        assert!(budget.turn(&beta, 8 << 20).now_or_never().is_none());
    }
}
