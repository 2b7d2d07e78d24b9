//! Series of the engine.

use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Result};

use super::buckets::{REQUEST_SECONDS, STEP_SECONDS};
use super::registrar::Registrar;

/// Series of the engine: queues, steps, swaps. Each sequence counts as one request.
#[derive(Debug)]
pub struct EngineMetrics {
    /// Sequences being generated.
    pub requests_running: IntGauge,
    /// Sequences waiting to run.
    pub requests_waiting: IntGauge,
    /// Share of the KV blocks in use, from 0 to 1.
    pub kv_cache_usage: Gauge,
    /// Preempted sequences.
    pub preemptions: IntCounter,
    /// Steps that failed.
    pub failed_steps: IntCounter,
    /// Streams that were ended because they were not read.
    pub unread_streams_ended: IntCounter,
    prefix_cache_queries: IntCounter,
    prefix_cache_hits: IntCounter,
    /// Cached KV blocks that were evicted.
    pub prefix_cache_evictions: IntCounter,
    /// Seconds from a request's arrival until it is first scheduled.
    pub queue_time: Histogram,
    step_seconds: HistogramVec,
    ticket_swaps: IntCounter,
    ticket_swap_seconds: Histogram,
    steps: IntCounterVec,
    overlay_nonzeros: IntCounter,
    overlay_build_seconds: Histogram,
}

/// How a step uses its tickets: the label `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepMode {
    /// No row has a ticket.
    Base,
    /// The rows' ticket is applied to the resident weights.
    Apply,
    /// Tickets are overlaid on their rows.
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

impl EngineMetrics {
    pub(super) fn new(registrar: &Registrar) -> Result<Self> {
        let series = Self {
            requests_running: registrar
                .int_gauge("num_requests_running", "Sequences being generated.")?,
            requests_waiting: registrar
                .int_gauge("num_requests_waiting", "Sequences waiting to run.")?,
            kv_cache_usage: registrar.gauge(
                "kv_cache_usage_perc",
                "Share of the KV blocks that running sequences hold, from 0 to 1.",
            )?,
            preemptions: registrar.counter(
                "num_preemptions_total",
                "Preemptions: running sequences that lost their KV blocks.",
            )?,
            failed_steps: registrar.counter(
                "failed_steps_total",
                "Engine steps that failed and ended their sequences with an error.",
            )?,
            unread_streams_ended: registrar.counter(
                "unread_streams_ended_total",
                "Streams that were ended because their client did not read them.",
            )?,
            prefix_cache_queries: registrar.counter(
                "prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
            )?,
            prefix_cache_hits: registrar.counter(
                "prefix_cache_hits_total",
                "Prompt tokens whose keys and values were found in the prefix cache.",
            )?,
            prefix_cache_evictions: registrar.counter(
                "prefix_cache_evictions_total",
                "Blocks evicted from the prefix cache.",
            )?,
            queue_time: registrar.histogram(
                "request_queue_time_seconds",
                "Time from a request's arrival until it is first scheduled.",
                REQUEST_SECONDS,
            )?,
            step_seconds: registrar.histogram_vec(
                "engine_step_seconds",
                "Time of an engine step, including its swap, by ticket mode: apply, overlay, or \
                 base (no row has a ticket).",
                STEP_SECONDS,
                "mode",
            )?,
            ticket_swaps: registrar.counter(
                "ticket_swaps_total",
                "Swaps of the applied ticket, including reverts to the base.",
            )?,
            ticket_swap_seconds: registrar.histogram(
                "ticket_swap_seconds",
                "Time of a swap: reverting a ticket, applying one, or both.",
                STEP_SECONDS,
            )?,
            steps: registrar.counter_vec(
                "engine_steps_total",
                "Engine steps, by ticket mode: apply, overlay, or base (no row has a ticket).",
                "mode",
            )?,
            overlay_nonzeros: registrar.counter(
                "overlay_nonzeros_total",
                "Nonzeros of the overlaid tickets, each ticket once per step.",
            )?,
            overlay_build_seconds: registrar.histogram(
                "overlay_build_seconds",
                "Time to build a ticket's overlay layout on first use.",
                STEP_SECONDS,
            )?,
        };
        for mode in StepMode::ALL {
            series.steps.with_label_values(&[mode.label()]);
            series.step_seconds.with_label_values(&[mode.label()]);
        }
        Ok(series)
    }

    /// Records a step that took `time` and overlaid tickets of `nonzeros` nonzeros in total.
    pub fn observe_step(&self, mode: StepMode, time: Duration, nonzeros: usize) {
        let label = [mode.label()];
        self.steps.with_label_values(&label).inc();
        self.step_seconds
            .with_label_values(&label)
            .observe(time.as_secs_f64());
        self.overlay_nonzeros.inc_by(nonzeros as u64);
    }

    /// Records a prompt of `tokens` tokens, the first `cached` of which were in the prefix cache.
    pub fn observe_prefix(&self, tokens: usize, cached: usize) {
        self.prefix_cache_queries.inc_by(tokens as u64);
        self.prefix_cache_hits.inc_by(cached as u64);
    }

    /// Number of steps so far, over all modes.
    pub fn num_steps(&self) -> u64 {
        StepMode::ALL
            .map(|mode| self.steps.with_label_values(&[mode.label()]).get())
            .iter()
            .sum()
    }

    /// Records the construction of a ticket's overlay layout.
    pub fn observe_overlay_build(&self, time: Duration) {
        self.overlay_build_seconds.observe(time.as_secs_f64());
    }

    /// Records a swap of the applied ticket, or a revert to the base.
    pub fn observe_swap(&self, time: Duration) {
        self.ticket_swaps.inc();
        self.ticket_swap_seconds.observe(time.as_secs_f64());
    }
}
