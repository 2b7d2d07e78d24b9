//! The used part of the budgets, and the rooms that tickets reserve in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::model::TicketBytes;

/// Used part of the budget.
#[derive(Debug, Default)]
pub(super) struct Used {
    host: AtomicUsize,
    device: AtomicUsize,
    tickets: AtomicUsize,
    /// Wakes the first in line: bytes were released, or a ticket became idle.
    pub changed: Notify,
}

impl Used {
    /// Bytes of all rooms.
    pub fn bytes(&self) -> TicketBytes {
        TicketBytes {
            host: self.host.load(Ordering::Acquire),
            device: self.device.load(Ordering::Acquire),
        }
    }

    /// Number of rooms, one per ticket.
    pub fn tickets(&self) -> usize {
        self.tickets.load(Ordering::Relaxed)
    }
}

/// Reserved bytes of the budget, released on drop.
#[derive(Debug)]
pub(in crate::registry) struct Room {
    used: Arc<Used>,
    bytes: TicketBytes,
}

impl Room {
    /// Takes bytes, whether or not the budget has them.
    pub(super) fn take(used: &Arc<Used>, bytes: TicketBytes) -> Self {
        used.host.fetch_add(bytes.host, Ordering::AcqRel);
        used.device.fetch_add(bytes.device, Ordering::AcqRel);
        used.tickets.fetch_add(1, Ordering::Relaxed);
        let used = Arc::clone(used);
        Self { used, bytes }
    }

    /// The reserved bytes.
    pub fn bytes(&self) -> TicketBytes {
        self.bytes
    }

    /// What the room is part of.
    pub(super) fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// Adds the bytes of another room of the same ticket.
    pub fn join(mut self, mut other: Self) -> Self {
        let bytes = std::mem::take(&mut other.bytes);
        self.bytes.host += bytes.host;
        self.bytes.device += bytes.device;
        self
    }

    /// Releases the host's bytes beyond `needed`.
    pub fn leave_host_but(&mut self, needed: usize) {
        let released = self.bytes.host.saturating_sub(needed);
        self.bytes.host -= released;
        self.used.host.fetch_sub(released, Ordering::AcqRel);
        self.used.changed.notify_one();
    }

    /// Releases the device's bytes.
    pub(super) fn leave_device(&mut self) {
        let device = std::mem::take(&mut self.bytes.device);
        self.used.device.fetch_sub(device, Ordering::AcqRel);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.host.fetch_sub(self.bytes.host, Ordering::AcqRel);
        self.used
            .device
            .fetch_sub(self.bytes.device, Ordering::AcqRel);
        self.used.tickets.fetch_sub(1, Ordering::Relaxed);
        self.used.changed.notify_one();
    }
}
