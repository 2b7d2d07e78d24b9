use prometheus::{Histogram, IntGauge, Result};

use super::registrar::Registrar;

/// Bounds of the histogram of waits for a ticket, in seconds.
const WAIT_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Series of the tickets' memory. The gauges are set when the series are read.
#[derive(Debug)]
pub struct TicketMetrics {
    /// Bytes of the host's memory that loaded tickets take.
    pub host_bytes: IntGauge,
    /// Bytes of the host's memory that they may take.
    pub host_budget: IntGauge,
    /// Bytes of the device's own memory that loaded tickets take; 0 on the CPU.
    pub device_bytes: IntGauge,
    /// Tickets in memory that a request or the weights use.
    pub leased: IntGauge,
    /// Pinned tickets.
    pub pinned: IntGauge,
    /// Requests that wait for their ticket to be loaded.
    pub waiting: IntGauge,
    /// Seconds that requests waited for their ticket.
    pub wait: Histogram,
}

impl TicketMetrics {
    pub(super) fn new(registrar: &Registrar) -> Result<Self> {
        Ok(Self {
            host_bytes: registrar.int_gauge(
                "ticket_memory_bytes",
                "Host memory that loaded tickets take.",
            )?,
            host_budget: registrar.int_gauge(
                "ticket_memory_budget_bytes",
                "Host memory that loaded tickets may take.",
            )?,
            device_bytes: registrar.int_gauge(
                "ticket_device_memory_bytes",
                "GPU memory that loaded tickets take.",
            )?,
            leased: registrar.int_gauge(
                "tickets_leased",
                "Tickets in memory that a request or the weights use.",
            )?,
            pinned: registrar.int_gauge("tickets_pinned", "Pinned tickets.")?,
            waiting: registrar.int_gauge(
                "ticket_requests_waiting",
                "Requests that wait for their ticket to be loaded.",
            )?,
            wait: registrar.histogram(
                "ticket_wait_seconds",
                "Time that requests waited for their ticket.",
                WAIT_SECONDS,
            )?,
        })
    }
}
