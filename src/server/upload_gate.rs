//! Places of the uploads in progress: a few run, some wait in line, and their files share a budget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;

/// Uploads that are received and validated at the same time; further ones wait.
const CONCURRENT_UPLOADS: usize = 4;
/// Uploads that wait; further ones are answered with status 429.
const WAITING_UPLOADS: usize = 32;

/// Bounds of the uploads in progress: how many, how many wait, and their bytes on disk.
pub struct UploadGate {
    running: Semaphore,
    waiting: Semaphore,
    /// Bytes on disk of the uploads in progress.
    spooled: AtomicU64,
    spool_budget: u64,
    /// Milliseconds that recent uploads took, as a moving average.
    recent_ms: AtomicU64,
}

/// Place of an upload in progress; its spooled bytes return to the budget when it is dropped.
pub struct UploadPlace<'a> {
    gate: &'a UploadGate,
    begun: Instant,
    spooled: u64,
    _running: SemaphorePermit<'a>,
}

impl UploadGate {
    /// A gate without uploads, whose files may take `spool_budget` bytes together.
    pub fn new(spool_budget: u64) -> Self {
        Self {
            running: Semaphore::new(CONCURRENT_UPLOADS),
            waiting: Semaphore::new(WAITING_UPLOADS),
            spooled: AtomicU64::new(0),
            spool_budget,
            recent_ms: AtomicU64::new(0),
        }
    }

    /// Waits for a place, in order of arrival. The semaphores are never closed.
    ///
    /// # Errors
    /// Too many uploads wait already.
    pub async fn enter(&self) -> Result<UploadPlace<'_>, ApiError> {
        let busy = |_| ApiError::UploadQueueFull {
            retry_after: self.expected_wait(),
        };
        let waiting = self.waiting.try_acquire().map_err(busy)?;
        let running = self.running.acquire().await.map_err(|closed| {
            let reason = closed.to_string();
            ApiError::Internal(reason)
        })?;
        drop(waiting);
        Ok(UploadPlace {
            gate: self,
            begun: Instant::now(),
            spooled: 0,
            _running: running,
        })
    }

    /// Seconds until an upload that arrives now would have its turn, at the recent pace.
    fn expected_wait(&self) -> u64 {
        let waiting = WAITING_UPLOADS - self.waiting.available_permits();
        let rounds = waiting.div_ceil(CONCURRENT_UPLOADS).max(1) as u64;
        let recent_ms = self.recent_ms.load(Ordering::Relaxed);
        recent_ms.saturating_mul(rounds).div_ceil(1000).max(1)
    }
}

impl UploadPlace<'_> {
    /// Takes `bytes` from the budget.
    pub fn spool(&mut self, bytes: u64) -> Result<(), ApiError> {
        let gate = self.gate;
        let total = gate.spooled.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.spooled += bytes;
        if total > gate.spool_budget {
            return Err(ApiError::UploadQueueFull {
                retry_after: gate.expected_wait(),
            });
        }
        Ok(())
    }
}

impl Drop for UploadPlace<'_> {
    fn drop(&mut self) {
        self.gate.spooled.fetch_sub(self.spooled, Ordering::AcqRel);
        let took = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.gate.recent_ms.load(Ordering::Relaxed);
        // A lost update of the average does no harm.
        let average = before - before / 8 + took / 8;
        self.gate.recent_ms.store(average.max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn uploads_wait_in_line_and_the_line_is_bounded() {
        let gate = UploadGate::new(100);
        let mut places = Vec::new();
        for _ in 0..CONCURRENT_UPLOADS {
            places.push(gate.enter().await.unwrap());
        }
        let mut waiting: Vec<_> = (0..WAITING_UPLOADS)
            .map(|_| Box::pin(gate.enter()))
            .collect();
        for wait in &mut waiting {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        assert!(matches!(
            gate.enter().await,
            Err(ApiError::UploadQueueFull { .. })
        ));
        drop(places.pop());
        let first = waiting.remove(0).await;
        assert!(first.is_ok());
        // A client that gives up leaves the line.
        drop(waiting.pop());
        assert_eq!(gate.waiting.available_permits(), 2);
    }

    #[tokio::test]
    async fn the_bytes_of_uploads_in_progress_are_bounded_and_returned() {
        let gate = UploadGate::new(100);
        let (mut a, mut b) = (gate.enter().await.unwrap(), gate.enter().await.unwrap());
        assert!(a.spool(60).is_ok());
        assert!(matches!(b.spool(60), Err(ApiError::UploadQueueFull { .. })));
        drop(b);
        assert!(a.spool(40).is_ok());
        drop(a);
        assert_eq!(gate.spooled.load(Ordering::Relaxed), 0);
    }
}
