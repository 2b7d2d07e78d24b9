//! A load client of any OpenAI-style server: the same work for each, measured from outside.
//!
//! Requests stream, prompts are of exactly so many tokens and share no prefix, and as many tokens are
//! asked for as will be generated, whatever the model wants. What a server counts is checked.

mod client;
mod prompts;
mod report;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use client::{Kind, Server, Timed};
pub use prompts::Words;
pub use report::{Percentiles, Report};
pub use work::{Arrivals, Popularity, Work};

/// Why a server could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(
        "the tokenizer has {0} lower-case words of one token that begin a text, and {1} that follow; \
         prompts need some of each"
    )]
    Words(usize, usize),
    #[error("a prompt of {wanted} words is {found} tokens of this tokenizer")]
    PromptTokens { wanted: usize, found: usize },
    #[error("the prompt cannot be encoded: {0}")]
    Encode(String),
    #[error("{url}: {reason}")]
    Server { url: String, reason: String },
    #[error("{url} lists no model")]
    NoModel { url: String },
}

/// Asks a server for all of the work; `done` hears how many requests have ended.
///
/// # Errors
/// A request of the warm-up fails. Later ones that fail are counted in the report.
pub fn run(
    server: &Server,
    work: &Work,
    words: &Words,
    done: &(dyn Fn(usize) + Sync),
) -> Result<Report, BenchError> {
    // Every adapter once, so that nobody pays for loading it.
    for i in 0..work.warmup.max(server.adapters.len()) {
        let adapter = (i < server.adapters.len()).then_some(i);
        let prompt = words.prompt(work.seed, u64::MAX - i as u64, work.prompt_tokens);
        server.complete(&prompt, work.max_tokens.min(4), adapter)?;
    }
    let results = Mutex::new(Vec::with_capacity(work.requests));
    let begin = Instant::now();
    let one = |i: usize, since: Instant| {
        let prompt = words.prompt(work.seed, i as u64, work.prompt_tokens);
        let adapter = work.adapter(i, server.adapters.len());
        let result = server.complete(&prompt, work.max_tokens, adapter);
        let result = result.map(|timed| timed.since(since));
        let mut results = results.lock().expect("no thread panicked");
        results.push(result);
        done(results.len());
    };
    match work.arrivals {
        Arrivals::Closed { concurrency } => {
            let next = AtomicUsize::new(0);
            let client = || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= work.requests {
                        return;
                    }
                    one(i, Instant::now());
                }
            };
            thread::scope(|scope| {
                for _ in 0..concurrency.min(work.requests) {
                    scope.spawn(client);
                }
            });
        }
        Arrivals::Open { rate } => thread::scope(|scope| {
            let one = &one;
            for (i, after) in work.arrivals(rate).enumerate() {
                let at = begin + Duration::from_secs_f64(after);
                thread::sleep(at.saturating_duration_since(Instant::now()));
                // From when it was to be sent: a late client must not flatter the server.
                scope.spawn(move || one(i, at));
            }
        }),
    }
    let wall = begin.elapsed();
    let results = results.into_inner().expect("no thread panicked");
    Ok(Report::new(work, results, wall))
}
