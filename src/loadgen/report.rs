//! Results of a run.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::client::RequestTiming;
use super::error::LoadError;
use super::workload::Workload;

/// Figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// All requests, failed or not.
    pub requests: usize,
    /// Failed requests; the other figures exclude them.
    pub failed: usize,
    /// Error of the first failed request.
    pub first_failure: Option<String>,
    /// Requests for which the server counted another number of tokens than requested.
    pub wrong_counts: usize,
    /// Wall time of the run.
    pub seconds: f64,
    /// Generated tokens per second, over the whole run.
    pub tokens_per_second: f64,
    /// Median over requests: tokens per second after the first.
    pub decode_tokens_per_second: Option<f64>,
    /// Prompt tokens divided by the median time to first token.
    pub prefill_tokens_per_second: Option<f64>,
    /// Time to first token.
    pub ttft_ms: Option<Percentiles>,
    /// Time between consecutive chunks of a stream.
    pub inter_token_ms: Option<Percentiles>,
    /// Time of a whole request.
    pub request_ms: Option<Percentiles>,
}

/// Percentiles by nearest rank, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Percentiles {
    /// Percentiles of these times; `None` if there are none.
    pub fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times[rank.saturating_sub(1).min(last)].as_secs_f64() * 1000.0
        };
        Some(Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
        })
    }
}

impl Report {
    pub(super) fn new(
        workload: &Workload,
        results: Vec<Result<RequestTiming, LoadError>>,
        wall: Duration,
    ) -> Self {
        let requests = results.len();
        let (mut good, mut first_failure) = (Vec::new(), None);
        for result in results {
            match result {
                Ok(timing) => good.push(timing),
                Err(error) => _ = first_failure.get_or_insert_with(|| error.to_string()),
            }
        }
        let wrong_count = |timing: &&RequestTiming| {
            let prompt = timing.prompt_tokens.unwrap_or(workload.prompt_tokens);
            (prompt, timing.completion_tokens) != (workload.prompt_tokens, workload.max_tokens)
        };
        let tokens: usize = good.iter().map(|timing| timing.completion_tokens).sum();
        let seconds = wall.as_secs_f64();
        let ttft_ms = Percentiles::of(good.iter().map(RequestTiming::time_to_first_token));
        let prefill = ttft_ms.map(|ttft| 1000.0 * workload.prompt_tokens as f64 / ttft.p50);
        Self {
            requests,
            failed: requests - good.len(),
            first_failure,
            wrong_counts: good.iter().filter(wrong_count).count(),
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            decode_tokens_per_second: median(good.iter().filter_map(RequestTiming::decode_rate)),
            prefill_tokens_per_second: prefill,
            ttft_ms,
            inter_token_ms: Percentiles::of(good.iter().flat_map(RequestTiming::inter_token_times)),
            request_ms: Percentiles::of(good.iter().map(RequestTiming::total)),
        }
    }
}

/// Median; the upper one if the count is even.
fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |f: &mut fmt::Formatter<'_>, name: &str, rate: Option<f64>| match rate {
            Some(rate) => writeln!(f, "{name:<22}{rate:>10.1} tokens/s"),
            None => Ok(()),
        };
        writeln!(
            f,
            "{:<22}{:>10} in {:.1} s",
            "requests", self.requests, self.seconds
        )?;
        if let Some(failure) = &self.first_failure {
            writeln!(
                f,
                "{:<22}{:>10}, first error: {failure}",
                "failed", self.failed
            )?;
        }
        if self.wrong_counts > 0 {
            let what = "requests have other token counts on the server than requested";
            writeln!(f, "{:<22}{:>10} {what}", "wrong counts", self.wrong_counts)?;
        }
        rate(f, "output", Some(self.tokens_per_second))?;
        rate(f, "decode per stream", self.decode_tokens_per_second)?;
        rate(f, "prefill per stream", self.prefill_tokens_per_second)?;
        writeln!(
            f,
            "\n{:<22}{:>10}{:>10}{:>10}",
            "milliseconds", "p50", "p95", "p99"
        )?;
        let times = [
            ("time to first token", self.ttft_ms),
            ("between tokens", self.inter_token_ms),
            ("whole request", self.request_ms),
        ];
        for (name, times) in times {
            if let Some(Percentiles { p50, p95, p99 }) = times {
                writeln!(f, "{name:<22}{p50:>10.1}{p95:>10.1}{p99:>10.1}")?;
            }
        }
        Ok(())
    }
}
