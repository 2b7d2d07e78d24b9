//! Per-completion metrics, as a client would measure them.

use std::sync::Arc;
use std::time::Instant;

use crate::metrics::{FinishedReason, Metrics};

/// Times one completion and counts its tokens. Dropping it before [`Meter::finish`] counts an
/// abort.
pub struct Meter {
    metrics: Arc<Metrics>,
    arrived: Instant,
    last_token: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
    finished: bool,
}

impl Meter {
    /// Starts the meter of a completion that the engine has accepted. `arrived` is the arrival of
    /// its request; `max_tokens` bounds the generated tokens.
    pub fn start(
        metrics: Arc<Metrics>,
        arrived: Instant,
        prompt_tokens: usize,
        max_tokens: usize,
    ) -> Self {
        metrics.server.prompt_tokens.inc_by(prompt_tokens as u64);
        metrics.server.request_max_tokens.observe(max_tokens as f64);
        Self {
            metrics,
            arrived,
            last_token: None,
            prompt_tokens,
            tokens: 0,
            finished: false,
        }
    }

    /// Records the arrival of one token.
    pub fn token(&mut self) {
        let now = Instant::now();
        let metrics = &self.metrics.server;
        let (since, histogram) = match self.last_token {
            Some(last) => (last, &metrics.inter_token_latency),
            None => (self.arrived, &metrics.time_to_first_token),
        };
        histogram.observe((now - since).as_secs_f64());
        metrics.generation_tokens.inc();
        self.last_token = Some(now);
        self.tokens += 1;
    }

    /// Records the end of the completion.
    pub fn finish(&mut self, reason: FinishedReason) {
        self.finished = true;
        let metrics = &self.metrics.server;
        metrics.finished(reason);
        metrics
            .e2e_latency
            .observe(self.arrived.elapsed().as_secs_f64());
        metrics
            .request_prompt_tokens
            .observe(self.prompt_tokens as f64);
        metrics
            .request_generation_tokens
            .observe(self.tokens as f64);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.finished {
            self.metrics.server.finished(FinishedReason::Abort);
        }
    }
}
