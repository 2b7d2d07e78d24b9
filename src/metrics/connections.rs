use prometheus::{IntCounter, IntCounterVec, IntGauge, Result};

use super::registrar::Registrar;

/// Series of the connections, from the time that the base is loaded.
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// Open connections.
    pub open: IntGauge,
    /// Connections closed, or answered with 503, because there were too many.
    pub refused: IntCounter,
    /// Idle connections closed to make room for new ones.
    pub evicted: IntCounter,
    /// Malformed requests.
    pub malformed: IntCounter,
    timeouts: IntCounterVec,
}

/// What a client took too long for: the label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTimeout {
    /// The TLS handshake.
    Handshake,
    /// The head of a request.
    Head,
    /// The next request on a kept-alive connection.
    Idle,
    /// The body of a request.
    Body,
    /// Reading a response.
    Write,
}

impl ClientTimeout {
    const ALL: [Self; 5] = [
        Self::Handshake,
        Self::Head,
        Self::Idle,
        Self::Body,
        Self::Write,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Body => "body",
            Self::Write => "write",
        }
    }
}

impl ConnectionMetrics {
    pub(super) fn new(registrar: &Registrar) -> Result<Self> {
        let series = Self {
            open: registrar.int_gauge("http_connections", "Open connections.")?,
            refused: registrar.counter(
                "http_connections_refused_total",
                "Connections closed, or answered with status 503, because there were too many.",
            )?,
            evicted: registrar.counter(
                "http_connections_evicted_total",
                "Idle connections closed to make room for new ones.",
            )?,
            malformed: registrar.counter(
                "http_malformed_requests_total",
                "Requests refused because they violate HTTP.",
            )?,
            timeouts: registrar.counter_vec(
                "http_client_timeouts_total",
                "Connections whose client took too long, by what it took too long for: handshake, \
                 head, idle, body or write (reading a response).",
                "kind",
            )?,
        };
        for kind in ClientTimeout::ALL {
            series.timeouts.with_label_values(&[kind.label()]);
        }
        Ok(series)
    }

    /// Counts a client that took too long.
    pub fn timed_out(&self, kind: ClientTimeout) {
        self.timeouts.with_label_values(&[kind.label()]).inc();
    }
}
