//! All Prometheus series. Series that vLLM also has keep its names and meanings under the prefix
//! `tombola_`.

mod buckets;
mod connections;
mod engine;
mod registrar;
mod server;
mod ticket_requests;
mod tickets;

use prometheus::{Registry, TextEncoder};

pub use connections::{ClientTimeout, ConnectionMetrics};
pub use engine::{EngineMetrics, StepMode};
pub use server::{FinishedReason, Refusal, ServerMetrics};
pub use tickets::TicketMetrics;

use registrar::Registrar;

/// Label of the series that belong to a tenant.
const TENANT: &str = "tenant";

/// All series and the registry that renders them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Series that the engine records.
    pub engine: EngineMetrics,
    /// Series that the server records.
    pub server: ServerMetrics,
    /// Series of the connections.
    pub connections: ConnectionMetrics,
    /// Series of the tickets' memory.
    pub tickets: TicketMetrics,
}

impl Metrics {
    /// All series at zero. The token histograms reach up to `max_model_len`.
    ///
    /// # Errors
    /// Two series share a name, or a name is malformed: a bug.
    pub fn new(max_model_len: usize) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let registrar = Registrar(&registry);
        let engine = EngineMetrics::new(&registrar)?;
        let server = ServerMetrics::new(&registrar, max_model_len)?;
        let connections = ConnectionMetrics::new(&registrar)?;
        let tickets = TicketMetrics::new(&registrar)?;
        #[cfg(target_os = "linux")]
        {
            use prometheus::process_collector::ProcessCollector;
            registry.register(Box::new(ProcessCollector::for_self()))?;
        }
        Ok(Self {
            registry,
            engine,
            server,
            connections,
            tickets,
        })
    }

    /// All series in the Prometheus text format.
    ///
    /// # Errors
    /// A series is inconsistent: a bug.
    pub fn render(&self) -> prometheus::Result<String> {
        self.render_where(|_| true)
    }

    /// The series that `tenant` may see, in the Prometheus text format: its own, and those of no
    /// tenant.
    ///
    /// # Errors
    /// A series is inconsistent: a bug.
    pub fn render_for(&self, tenant: &str) -> prometheus::Result<String> {
        self.render_where(|owner| owner == tenant)
    }

    /// The series without a tenant, and those of the tenants that `is_shown` accepts.
    fn render_where(&self, is_shown: impl Fn(&str) -> bool) -> prometheus::Result<String> {
        let mut families = self.registry.gather();
        for family in &mut families {
            family.mut_metric().retain_mut(|series| {
                let mut labels = series.take_label();
                // An empty label is one that is absent.
                labels.retain(|label| label.name() != TENANT || !label.value().is_empty());
                let owner = labels.iter().find(|label| label.name() == TENANT);
                let shown = owner.is_none_or(|owner| is_shown(owner.value()));
                series.set_label(labels);
                shown
            });
        }
        families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&families)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render().unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_series_has_a_help_text_and_the_prefix() {
        let text = lines(&Metrics::new(2048).unwrap());
        let types: Vec<_> = text.iter().filter(|l| l.starts_with("# TYPE")).collect();
        let helps = text.iter().filter(|l| l.starts_with("# HELP")).count();
        assert_eq!(types.len(), helps);
        for line in types {
            let name = line.split(' ').nth(2).unwrap();
            assert!(
                name.starts_with("tombola_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                line.ends_with(" counter"),
                "{line}"
            );
        }
    }

    #[test]
    fn work_counts_once_and_a_deleted_ticket_leaves_no_series() {
        let metrics = Metrics::new(16).unwrap();
        let (engine, server) = (&metrics.engine, &metrics.server);
        engine.observe_swap(Duration::from_millis(3));
        engine.observe_step(StepMode::Overlay, Duration::from_millis(7), 5);
        engine.observe_overlay_build(Duration::from_millis(1));
        server.ticket_requested("", "sql");
        server.finished(FinishedReason::Length);
        let text = lines(&metrics);
        for line in [
            "tombola_ticket_swaps_total 1",
            "tombola_ticket_swap_seconds_count 1",
            "tombola_engine_steps_total{mode=\"overlay\"} 1",
            "tombola_engine_step_seconds_sum{mode=\"overlay\"} 0.007",
            "tombola_engine_step_seconds_count{mode=\"apply\"} 0",
            "tombola_overlay_nonzeros_total 5",
            "tombola_overlay_build_seconds_count 1",
            "tombola_ticket_requests_total{ticket=\"sql\"} 1",
            "tombola_request_success_total{finished_reason=\"length\"} 1",
            "tombola_request_success_total{finished_reason=\"abort\"} 0",
        ] {
            assert!(text.iter().any(|l| l == line), "{line} is missing");
        }
        server.ticket_deleted("", "sql");
        server.ticket_deleted("", "never-requested");
        assert!(!lines(&metrics).iter().any(|l| l.contains("\"sql\"")));
    }
    #[test]
    fn a_tenant_sees_its_own_series_and_the_public_ones() {
        let metrics = Metrics::new(16).unwrap();
        for owner in ["", "acme", "other"] {
            metrics.server.ticket_requested(owner, "sql");
        }
        let series = |text: String| {
            let lines = text.lines().map(str::to_owned);
            let series = lines.filter(|l| l.starts_with("tombola_ticket_requests_total"));
            series.collect::<Vec<_>>()
        };
        let public = "tombola_ticket_requests_total{ticket=\"sql\"} 1";
        let own = "tombola_ticket_requests_total{tenant=\"acme\",ticket=\"sql\"} 1";
        assert_eq!(series(metrics.render_for("acme").unwrap()), [public, own]);
        assert_eq!(series(metrics.render_for("third").unwrap()), [public]);
        assert_eq!(series(metrics.render().unwrap()).len(), 3);
        metrics.server.ticket_deleted("acme", "sql");
        assert_eq!(series(metrics.render_for("acme").unwrap()), [public]);
        assert_eq!(series(metrics.render().unwrap()).len(), 2);
    }
}
