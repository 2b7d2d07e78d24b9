use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Result};

use super::buckets::{self, COMPLETIONS, FIRST_TOKEN_SECONDS, REQUEST_SECONDS, TOKEN_SECONDS};
use super::registrar::Registrar;
use super::ticket_requests::TicketRequests;

/// Series of the server, as a client would measure them. Each completion counts as one request, as
/// in vLLM: `n = 2` counts two.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Prompt tokens of all requests.
    pub prompt_tokens: IntCounter,
    /// Tokens generated and delivered.
    pub generation_tokens: IntCounter,
    /// Seconds from a request's arrival to its first token.
    pub time_to_first_token: Histogram,
    /// Seconds between consecutive tokens of a completion.
    pub inter_token_latency: Histogram,
    /// Seconds from a request's arrival to its last token.
    pub e2e_latency: Histogram,
    /// Prompt tokens per request.
    pub request_prompt_tokens: Histogram,
    /// Generated tokens per request.
    pub request_generation_tokens: Histogram,
    /// `max_tokens` of requests.
    pub request_max_tokens: Histogram,
    /// `n` of requests.
    pub request_n: Histogram,
    /// Bytes of generated tokens that clients have not read yet.
    pub unread_output_bytes: IntGauge,
    /// Fields of requests that were ignored because nobody knows them.
    pub ignored_fields: IntCounter,
    request_success: IntCounterVec,
    requests_refused: IntCounterVec,
    ticket_requests: TicketRequests,
    /// Tickets that requests may name.
    pub tickets: IntGauge,
    /// Tickets in memory.
    pub tickets_resident: IntGauge,
}

/// Reason why a completion ended: the label `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishedReason {
    /// A stop token or a stop string.
    Stop,
    /// The token limit.
    Length,
    /// The client disconnected, or the engine failed.
    Abort,
}

impl FinishedReason {
    const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::Abort];

    fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Reason why a request was not admitted: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All places of the queue are taken.
    QueueFull,
    /// The account holds its share of the queue.
    ShareFull,
    /// The engine has stopped.
    Stopped,
    /// The tenant has as much in progress as its limits allow.
    TenantLimit,
    /// Too many uploads are in progress.
    UploadQueueFull,
    /// Bodies in progress take up the room for them, or the tenant's share of it.
    TooManyBodies,
    /// The request waited too long for ticket memory.
    TicketMemoryFull,
    /// All places of the line for ticket memory are taken.
    TicketLineFull,
    /// The account holds its share of that line.
    TicketLineShareFull,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::ShareFull,
        Self::Stopped,
        Self::TenantLimit,
        Self::UploadQueueFull,
        Self::TooManyBodies,
        Self::TicketMemoryFull,
        Self::TicketLineFull,
        Self::TicketLineShareFull,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ShareFull => "share_full",
            Self::Stopped => "stopped",
            Self::TenantLimit => "tenant_limit",
            Self::UploadQueueFull => "upload_queue_full",
            Self::TooManyBodies => "too_many_bodies",
            Self::TicketMemoryFull => "ticket_memory_full",
            Self::TicketLineFull => "ticket_line_full",
            Self::TicketLineShareFull => "ticket_line_share_full",
        }
    }
}

impl ServerMetrics {
    pub(super) fn new(registrar: &Registrar, max_model_len: usize) -> Result<Self> {
        let tokens = buckets::tokens(max_model_len);
        let series = Self {
            prompt_tokens: registrar
                .counter("prompt_tokens_total", "Prompt tokens of all requests.")?,
            generation_tokens: registrar
                .counter("generation_tokens_total", "Tokens generated and delivered.")?,
            time_to_first_token: registrar.histogram(
                "time_to_first_token_seconds",
                "Time from a request's arrival to its first token.",
                FIRST_TOKEN_SECONDS,
            )?,
            inter_token_latency: registrar.histogram(
                "inter_token_latency_seconds",
                "Time between consecutive tokens of a sequence.",
                TOKEN_SECONDS,
            )?,
            e2e_latency: registrar.histogram(
                "e2e_request_latency_seconds",
                "Time from a request's arrival to its last token.",
                REQUEST_SECONDS,
            )?,
            request_prompt_tokens: registrar.histogram(
                "request_prompt_tokens",
                "Prompt tokens per request.",
                &tokens,
            )?,
            request_generation_tokens: registrar.histogram(
                "request_generation_tokens",
                "Generated tokens per request.",
                &tokens,
            )?,
            request_max_tokens: registrar.histogram(
                "request_params_max_tokens",
                "The max_tokens of requests.",
                &tokens,
            )?,
            request_n: registrar.histogram(
                "request_params_n",
                "The n of requests.",
                COMPLETIONS,
            )?,
            request_success: registrar.counter_vec(
                "request_success_total",
                "Finished requests, by reason.",
                "finished_reason",
            )?,
            requests_refused: registrar.counter_vec(
                "requests_refused_total",
                "Requests that were not admitted, by reason: queue_full, share_full (the tenant or \
                 ticket holds its share of the queue), stopped, tenant_limit, upload_queue_full, \
                 too_many_bodies, ticket_memory_full, ticket_line_full, ticket_line_share_full.",
                "reason",
            )?,
            unread_output_bytes: registrar.int_gauge(
                "unread_output_bytes",
                "Bytes of generated tokens that clients have not read yet.",
            )?,
            ignored_fields: registrar.counter(
                "ignored_fields_total",
                "Fields of requests that were ignored because nobody knows them.",
            )?,
            ticket_requests: TicketRequests::new(registrar)?,
            tickets: registrar.int_gauge("tickets", "Tickets that requests may name.")?,
            tickets_resident: registrar.int_gauge("tickets_resident", "Tickets in memory.")?,
        };
        for reason in FinishedReason::ALL {
            series.request_success.with_label_values(&[reason.label()]);
        }
        for refusal in Refusal::ALL {
            series
                .requests_refused
                .with_label_values(&[refusal.label()]);
        }
        Ok(series)
    }

    /// Counts the end of a completion.
    pub fn finished(&self, reason: FinishedReason) {
        self.request_success
            .with_label_values(&[reason.label()])
            .inc();
    }

    /// Counts a request that was not admitted.
    pub fn refused(&self, refusal: Refusal) {
        self.requests_refused
            .with_label_values(&[refusal.label()])
            .inc();
    }

    /// Counts a request for a ticket, or for a composition by its text. The name of the owner is
    /// empty if it is public.
    pub fn ticket_requested(&self, owner: &str, name: &str) {
        self.ticket_requests.requested(owner, name);
    }

    /// Removes the series of a deleted ticket and of the compositions that name it, so that series
    /// do not pile up.
    pub fn ticket_deleted(&self, owner: &str, alias: &str) {
        self.ticket_requests.deleted(owner, alias);
    }
}
