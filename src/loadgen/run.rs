//! A run: warm-up, then all requests by the arrival process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{RequestTiming, Server};
use super::error::LoadError;
use super::prompts::PromptWords;
use super::report::Report;
use super::workload::{Arrivals, Workload};

/// Sends the whole workload to a server. `on_progress` receives the number of requests that have
/// ended.
///
/// # Errors
/// A request of the warm-up fails. The report counts later failures.
pub fn run(
    server: &Server,
    workload: &Workload,
    words: &PromptWords,
    on_progress: &(dyn Fn(usize) + Sync),
) -> Result<Report, LoadError> {
    // Each adapter at least once, so that no measured request pays for loading it.
    for i in 0..workload.warmup.max(server.adapters.len()) {
        let adapter = (i < server.adapters.len()).then_some(i);
        let prompt = words.prompt(workload.seed, u64::MAX - i as u64, workload.prompt_tokens);
        server.complete(&prompt, workload.max_tokens.min(4), adapter)?;
    }
    let results: Mutex<Vec<Result<RequestTiming, LoadError>>> =
        Mutex::new(Vec::with_capacity(workload.requests));
    let start = Instant::now();
    let request = |i: usize, scheduled: Instant| {
        let prompt = words.prompt(workload.seed, i as u64, workload.prompt_tokens);
        let adapter = workload.adapter(i, server.adapters.len());
        let result = server
            .complete(&prompt, workload.max_tokens, adapter)
            .map(|timing| timing.measured_from(scheduled));
        let mut results = results.lock().expect("no thread panicked");
        results.push(result);
        on_progress(results.len());
    };
    match workload.arrivals {
        Arrivals::Closed { concurrency } => {
            closed_loop(workload.requests, concurrency, &request);
        }
        Arrivals::Open { rate } => open_loop(start, workload.arrivals(rate), &request),
    }
    let wall = start.elapsed();
    let results = results.into_inner().expect("no thread panicked");
    Ok(Report::new(workload, results, wall))
}

/// Keeps `concurrency` requests in flight until all are sent.
fn closed_loop(requests: usize, concurrency: usize, request: &(impl Fn(usize, Instant) + Sync)) {
    let next = AtomicUsize::new(0);
    let client = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= requests {
                return;
            }
            request(i, Instant::now());
        }
    };
    thread::scope(|scope| {
        for _ in 0..concurrency.min(requests) {
            scope.spawn(client);
        }
    });
}

/// Sends each request at its arrival time, in seconds after `start`.
fn open_loop(
    start: Instant,
    arrivals: impl Iterator<Item = f64>,
    request: &(impl Fn(usize, Instant) + Sync),
) {
    thread::scope(|scope| {
        for (i, seconds) in arrivals.enumerate() {
            let scheduled = start + Duration::from_secs_f64(seconds);
            thread::sleep(scheduled.saturating_duration_since(Instant::now()));
            // Latencies count from the scheduled time, so that a late client does not hide delays.
            scope.spawn(move || request(i, scheduled));
        }
    });
}
