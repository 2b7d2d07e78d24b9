//! What a run came to.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::client::Timed;
use super::work::Work;

/// A run in figures.
#[derive(Debug, Serialize)]
pub struct Report {
    pub requests: usize,
    /// Requests that failed; the other figures leave them out.
    pub failed: usize,
    pub first_failure: Option<String>,
    /// Requests whose prompt or answer the server counts at other lengths than were asked for.
    pub wrong_counts: usize,
    pub seconds: f64,
    /// Generated tokens a second, over the whole run.
    pub tokens_per_second: f64,
    /// The median over requests of tokens a second after the first.
    pub decode_tokens_per_second: Option<f64>,
    /// Prompt tokens by the median time to the first token.
    pub prefill_tokens_per_second: Option<f64>,
    /// Time to first token.
    pub ttft_ms: Option<Percentiles>,
    /// Time between two chunks of a stream.
    pub inter_token_ms: Option<Percentiles>,
    /// Time of whole requests.
    pub request_ms: Option<Percentiles>,
}

/// By nearest rank, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Percentiles {
    /// Of some times; `None` where there are none.
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
        work: &Work,
        results: Vec<Result<Timed, BenchError>>,
        wall: Duration,
    ) -> Self {
        let requests = results.len();
        let (mut good, mut first_failure) = (Vec::new(), None);
        for result in results {
            match result {
                Ok(timed) => good.push(timed),
                Err(error) => _ = first_failure.get_or_insert_with(|| error.to_string()),
            }
        }
        let wrong = |timed: &&Timed| {
            let prompt = timed.prompt_tokens.unwrap_or(work.prompt_tokens);
            (prompt, timed.completion_tokens) != (work.prompt_tokens, work.max_tokens)
        };
        let tokens: usize = good.iter().map(|timed| timed.completion_tokens).sum();
        let seconds = wall.as_secs_f64();
        let ttft_ms = Percentiles::of(good.iter().map(Timed::first));
        let prefill = ttft_ms.map(|ttft| 1000.0 * work.prompt_tokens as f64 / ttft.p50);
        Self {
            requests,
            failed: requests - good.len(),
            first_failure,
            wrong_counts: good.iter().filter(wrong).count(),
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            decode_tokens_per_second: median(good.iter().filter_map(Timed::decode_rate)),
            prefill_tokens_per_second: prefill,
            ttft_ms,
            inter_token_ms: Percentiles::of(good.iter().flat_map(Timed::gaps)),
            request_ms: Percentiles::of(good.iter().map(Timed::whole)),
        }
    }
}

/// The middle of some numbers, the upper one of two.
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
                "{:<22}{:>10}, the first: {failure}",
                "failed", self.failed
            )?;
        }
        if self.wrong_counts > 0 {
            let what = "requests were counted at other lengths than asked for";
            writeln!(f, "{:<22}{:>10} {what}", "wrong counts", self.wrong_counts)?;
        }
        rate(f, "output", Some(self.tokens_per_second))?;
        rate(f, "decode, a stream", self.decode_tokens_per_second)?;
        rate(f, "prefill, a stream", self.prefill_tokens_per_second)?;
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
