//! Record of refused requests: a metric for each, and a log line every few seconds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::ApiError;
use crate::metrics::{Metrics, Refusal};
use crate::registry::RegistryError;

/// Shortest time between two log lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Records refused requests.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Unlogged>);

#[derive(Debug, Default)]
struct Unlogged {
    count: u64,
    logged: Option<Instant>,
}

impl Refusals {
    /// Records an error if it says that a request was not admitted.
    pub fn record(&self, metrics: &Metrics, error: &ApiError) {
        let refusal = match error {
            ApiError::QueueFull { .. } => Refusal::QueueFull,
            ApiError::ShareFull { .. } => Refusal::ShareFull,
            ApiError::EngineStopped => Refusal::Stopped,
            ApiError::TenantBusy { .. } => Refusal::TenantLimit,
            ApiError::UploadQueueFull { .. } => Refusal::UploadQueueFull,
            ApiError::BodiesFull | ApiError::BodiesShareFull => Refusal::TooManyBodies,
            _ => return,
        };
        self.note(metrics, refusal, error);
    }

    /// Records that a request found no memory for its ticket, or no place in the line for it.
    pub fn record_ticket(&self, metrics: &Metrics, error: &RegistryError) {
        let refusal = match error {
            RegistryError::MemoryFull { .. } => Refusal::TicketMemoryFull,
            RegistryError::LineFull { .. } => Refusal::TicketLineFull,
            RegistryError::LineShare { .. } => Refusal::TicketLineShareFull,
            _ => return,
        };
        self.note(metrics, refusal, error);
    }

    fn note(&self, metrics: &Metrics, refusal: Refusal, error: &dyn std::fmt::Display) {
        metrics.server.refused(refusal);
        if let Some(refused) = self.due(Instant::now()) {
            tracing::warn!(refused, "refused requests, the last because {error}");
        }
    }

    /// Number of refusals since the last log line, if a line is due.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut unlogged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.count += 1;
        let recent = |logged: Instant| now.duration_since(logged) < PAUSE;
        if unlogged.logged.is_some_and(recent) {
            return None;
        }
        unlogged.logged = Some(now);
        Some(std::mem::take(&mut unlogged.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_one_line_every_few_seconds() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.due(start), Some(1));
        assert!((0..1000).all(|_| refusals.due(start + PAUSE / 2).is_none()));
        assert_eq!(refusals.due(start + PAUSE), Some(1001));
    }
}
