//! Every Prometheus series, named once. Where vLLM has a series, its name and meaning are kept
//! under the prefix `tombola_`.
//!
//! The engine keeps the series about its queues, steps and swaps; the server keeps those that a
//! client could measure, and counts one request per sequence (`n = 2` counts two), as vLLM does.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

const PREFIX: &str = "tombola";

/// vLLM's buckets, in seconds.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// A swap or a step: from a tiny ticket on a fast machine to a large model on a slow one.
const WORK_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// All series and the registry that renders them. Gauges and counters are set where the thing
/// happens; clones of a series share it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,

    // The engine's.
    pub requests_running: IntGauge,
    pub requests_waiting: IntGauge,
    /// Share of the KV blocks in use, 1 is all.
    pub kv_cache_usage: Gauge,
    pub preemptions: IntCounter,
    /// Seconds from a request's arrival until it is first scheduled.
    pub queue_time: Histogram,
    step_seconds: HistogramVec,
    ticket_swaps: IntCounter,
    ticket_swap_seconds: Histogram,
    steps: IntCounterVec,
    overlay_nonzeros: IntCounter,
    overlay_build_seconds: Histogram,

    // The server's.
    pub prompt_tokens: IntCounter,
    pub generation_tokens: IntCounter,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub e2e_latency: Histogram,
    pub request_prompt_tokens: Histogram,
    pub request_generation_tokens: Histogram,
    pub request_max_tokens: Histogram,
    pub request_n: Histogram,
    request_success: IntCounterVec,
    ticket_requests: IntCounterVec,
    /// Tickets that requests may name.
    pub tickets: IntGauge,
    /// Tickets in memory.
    pub tickets_resident: IntGauge,
}

/// How a sequence ended, as the label `finished_reason` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Stop,
    Length,
    /// The client went away, or the server gave up.
    Abort,
}

impl Finished {
    const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::Abort];

    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// How a step took its tickets, as the label `mode` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepMode {
    /// No row was under a ticket.
    Base,
    /// One ticket's deltas were in the weights.
    Apply,
    /// Tickets were laid over their rows.
    Overlay,
}

impl StepMode {
    const ALL: [Self; 3] = [Self::Base, Self::Apply, Self::Overlay];

    fn label(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Apply => "apply",
            Self::Overlay => "overlay",
        }
    }
}

impl Metrics {
    /// All series at zero. `max_model_len` sets how far the histograms of tokens reach.
    ///
    /// # Errors
    /// Never in practice: only if two series had one name, or a name were malformed.
    pub fn new(max_model_len: usize) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let make = Maker(&registry);
        let tokens = one_two_five(max_model_len);
        let metrics = Self {
            requests_running: make.gauge("num_requests_running", "Sequences being generated.")?,
            requests_waiting: make.gauge("num_requests_waiting", "Sequences waiting to run.")?,
            kv_cache_usage: make.keep(Gauge::with_opts(opts(
                "kv_cache_usage_perc",
                "Share of the KV blocks in use; 1 is all of them.",
            ))?)?,
            preemptions: make.counter(
                "num_preemptions_total",
                "Times a running sequence had to give its KV blocks back.",
            )?,
            queue_time: make.histogram(
                "request_queue_time_seconds",
                "Time from a request's arrival until it is first scheduled.",
                REQUEST_SECONDS,
            )?,
            step_seconds: make.histograms(
                "engine_step_seconds",
                "Time of one step of the engine, with the swap that it began with, by how it took its \
                 tickets: apply, overlay, or base (no row had one).",
                WORK_SECONDS,
                "mode",
            )?,
            ticket_swaps: make.counter(
                "ticket_swaps_total",
                "Times the ticket applied to the resident weights was changed.",
            )?,
            ticket_swap_seconds: make.histogram(
                "ticket_swap_seconds",
                "Time to revert one ticket and apply another.",
                WORK_SECONDS,
            )?,
            steps: make.counters(
                "engine_steps_total",
                "Steps of the engine, by how they took their tickets: apply, overlay, or base (no \
                 row had one).",
                "mode",
            )?,
            overlay_nonzeros: make.counter(
                "overlay_nonzeros_total",
                "Nonzeros of the tickets laid over rows, each ticket once a step.",
            )?,
            overlay_build_seconds: make.histogram(
                "overlay_build_seconds",
                "Time to lay a ticket out before it is first overlaid.",
                WORK_SECONDS,
            )?,
            prompt_tokens: make.counter("prompt_tokens_total", "Prompt tokens of all requests.")?,
            generation_tokens: make
                .counter("generation_tokens_total", "Tokens generated and delivered.")?,
            time_to_first_token: make.histogram(
                "time_to_first_token_seconds",
                "Time from a request's arrival to its first token.",
                FIRST_TOKEN_SECONDS,
            )?,
            inter_token_latency: make.histogram(
                "inter_token_latency_seconds",
                "Time between two tokens of one sequence.",
                TOKEN_SECONDS,
            )?,
            e2e_latency: make.histogram(
                "e2e_request_latency_seconds",
                "Time from a request's arrival to its last token.",
                REQUEST_SECONDS,
            )?,
            request_prompt_tokens: make.histogram(
                "request_prompt_tokens",
                "Prompt tokens of one request.",
                &tokens,
            )?,
            request_generation_tokens: make.histogram(
                "request_generation_tokens",
                "Tokens generated for one request.",
                &tokens,
            )?,
            request_max_tokens: make.histogram(
                "request_params_max_tokens",
                "The max_tokens of requests.",
                &tokens,
            )?,
            request_n: make.histogram(
                "request_params_n",
                "The n of requests.",
                &[1.0, 2.0, 5.0, 10.0, 20.0],
            )?,
            request_success: make.counters(
                "request_success_total",
                "Requests that ended, by why they did.",
                "finished_reason",
            )?,
            ticket_requests: make.counters(
                "ticket_requests_total",
                "Requests that named a ticket, by its name.",
                "ticket",
            )?,
            tickets: make.gauge("tickets", "Tickets that requests may name.")?,
            tickets_resident: make.gauge("tickets_resident", "Tickets in memory.")?,
            registry,
        };
        for mode in StepMode::ALL {
            metrics.steps.with_label_values(&[mode.label()]);
            metrics.step_seconds.with_label_values(&[mode.label()]);
        }
        for finished in Finished::ALL {
            metrics
                .request_success
                .with_label_values(&[finished.label()]);
        }
        #[cfg(target_os = "linux")]
        {
            use prometheus::process_collector::ProcessCollector;
            let process = ProcessCollector::for_self();
            metrics.registry.register(Box::new(process))?;
        }
        Ok(metrics)
    }

    /// A step ran, for so long, with `overlaid` nonzeros laid over its rows.
    pub fn stepped(&self, mode: StepMode, time: Duration, overlaid: usize) {
        let label = [mode.label()];
        self.steps.with_label_values(&label).inc();
        let seconds = self.step_seconds.with_label_values(&label);
        seconds.observe(time.as_secs_f64());
        self.overlay_nonzeros.inc_by(overlaid as u64);
    }

    /// Steps so far.
    pub fn num_steps(&self) -> u64 {
        let steps = StepMode::ALL.map(|mode| self.steps.with_label_values(&[mode.label()]).get());
        steps.iter().sum()
    }

    /// A ticket was laid out for overlaying, which took `time`.
    pub fn laid_out(&self, time: Duration) {
        self.overlay_build_seconds.observe(time.as_secs_f64());
    }

    /// Another ticket (or none) was applied, which took `time`.
    pub fn swapped(&self, time: Duration) {
        self.ticket_swaps.inc();
        self.ticket_swap_seconds.observe(time.as_secs_f64());
    }

    /// A sequence ended.
    pub fn finished(&self, how: Finished) {
        self.request_success.with_label_values(&[how.label()]).inc();
    }

    /// A request named a ticket.
    pub fn ticket_requested(&self, alias: &str) {
        self.ticket_requests.with_label_values(&[alias]).inc();
    }

    /// A ticket was deleted: its series goes, so that series do not pile up.
    pub fn ticket_deleted(&self, alias: &str) {
        // A ticket that nobody asked for has no series.
        let _ = self.ticket_requests.remove_label_values(&[alias]);
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// Never in practice: only if a series were inconsistent.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, series: C) -> prometheus::Result<C> {
        self.0.register(Box::new(series.clone()))?;
        Ok(series)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::with_opts(opts(name, help))?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::with_opts(opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(opts(name, help), &[label])?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        label: &str,
    ) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(opts, &[label])?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(opts)?)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

/// 1, 2, 5, 10, 20, 50 … up to `max`, as vLLM buckets tokens.
fn one_two_five(max: usize) -> Vec<f64> {
    let decades = std::iter::successors(Some(1_usize), |decade| decade.checked_mul(10));
    let steps = decades.flat_map(|decade| [1, 2, 5].map(|m| decade.saturating_mul(m)));
    let up_to_max = steps.take_while(|&step| step <= max.max(1));
    up_to_max.map(|step| step as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        metrics.swapped(Duration::from_millis(3));
        metrics.stepped(StepMode::Overlay, Duration::from_millis(7), 5);
        metrics.laid_out(Duration::from_millis(1));
        metrics.ticket_requested("sql");
        metrics.finished(Finished::Length);
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
        metrics.ticket_deleted("sql");
        metrics.ticket_deleted("never-asked-for");
        assert!(!lines(&metrics).iter().any(|l| l.contains("\"sql\"")));
    }

    #[test]
    fn buckets_of_tokens_reach_the_context() {
        assert_eq!(one_two_five(30), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(one_two_five(0), [1.0]);
    }
}
