//! What one sequence adds to the metrics, from a client's point of view.

use std::sync::Arc;
use std::time::Instant;

use super::generate::Prompt;
use crate::metrics::{Finished, Metrics};

/// Times one sequence and counts its tokens. Dropped before it is finished, it counts an abort.
pub struct Meter {
    metrics: Arc<Metrics>,
    arrived: Instant,
    last_token: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
    finished: bool,
}

impl Meter {
    /// A sequence that the engine has taken.
    pub fn start(metrics: Arc<Metrics>, arrived: Instant, prompt: &Prompt) -> Self {
        let prompt_tokens = prompt.ids.len();
        metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        metrics.request_max_tokens.observe(prompt.max_tokens as f64);
        Self {
            metrics,
            arrived,
            last_token: None,
            prompt_tokens,
            tokens: 0,
            finished: false,
        }
    }

    /// A token came.
    pub fn token(&mut self) {
        let now = Instant::now();
        let metrics = &self.metrics;
        let (since, histogram) = match self.last_token {
            Some(last) => (last, &metrics.inter_token_latency),
            None => (self.arrived, &metrics.time_to_first_token),
        };
        histogram.observe((now - since).as_secs_f64());
        metrics.generation_tokens.inc();
        self.last_token = Some(now);
        self.tokens += 1;
    }

    /// The sequence is complete.
    pub fn finish(&mut self, how: Finished) {
        self.finished = true;
        let metrics = &self.metrics;
        metrics.finished(how);
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
            self.metrics.finished(Finished::Abort);
        }
    }
}
