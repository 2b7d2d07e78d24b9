//! Submission of a request's completions: the first ones at once, the others of a large batch as
//! places in the queue become free.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};

use super::{Completion, GenerateRequest, TextDelta};
use crate::engine::SubmitError;
use crate::server::error::ApiError;
use crate::server::quota::RequestPermit;
use crate::server::state::AppState;

/// Pause before a completion of a large batch is submitted again, while others of the caller's
/// account hold its share of the queue.
const PAUSE: Duration = Duration::from_millis(50);

/// The completions of a request. Dropping them cancels those that run and forgets the others.
pub struct FanOut {
    state: Arc<AppState>,
    request: Arc<GenerateRequest>,
    /// The submitted completions, from the first on.
    running: Vec<Completion>,
    permit: Arc<RequestPermit>,
}

/// Submits `n` completions per prompt to the engine: all or none of those that it holds at once.
/// `permit` is the request's place among those of
/// its tenant.
///
/// # Errors
/// The caller has as much in progress as it may, the queue or share is full, or the engine has
/// stopped.
pub fn submit(
    state: &Arc<AppState>,
    request: GenerateRequest,
    mut permit: RequestPermit,
) -> Result<FanOut, ApiError> {
    let tokens = request.tokens();
    let metrics = &state.metrics;
    let refused = |error: &ApiError| state.refusals.record(metrics, error);
    permit.take_tokens(tokens).inspect_err(refused)?;
    let at_once = at_once(state, &request);
    let requests = (0..at_once).map(|index| request.engine_request(index));
    let streams = state.engine.submit_all(requests.collect());
    let streams = streams.map_err(ApiError::from).inspect_err(refused)?;
    for ticket in request.tickets.iter().flatten() {
        let name = ticket.name();
        metrics
            .server
            .ticket_requested(name.owner_label(), name.alias);
    }
    metrics.server.request_n.observe(request.sampling.n as f64);
    let permit = Arc::new(permit);
    let running = streams.into_iter().enumerate().map(|(index, outputs)| {
        Completion::new(state, &request, index, outputs, Arc::clone(&permit))
    });
    Ok(FanOut {
        running: running.collect(),
        permit,
        state: Arc::clone(state),
        request: Arc::new(request),
    })
}

/// Completions of a request that the engine holds at once: all that fit the account's share of the
/// queue; half a share of a larger batch, which leaves the other half to other requests.
fn at_once(state: &AppState, request: &GenerateRequest) -> usize {
    let share = state.engine.largest_share();
    let completions = request.completions();
    if completions <= share {
        completions
    } else {
        (share / 2).max(1)
    }
}

/// A completion that runs, or the index of one that is not submitted yet.
enum Entry {
    Running(Box<Completion>),
    Waiting(usize, Arc<RequestPermit>),
}

impl FanOut {
    /// Stream of the deltas of all completions, each with the index of its completion.
    pub fn deltas(self) -> impl Stream<Item = (usize, Result<TextDelta, ApiError>)> + Send + Unpin {
        let waiting = self.running.len()..self.request.completions();
        let running = self
            .running
            .into_iter()
            .map(|c| Entry::Running(Box::new(c)));
        // Holds the permit no longer than an entry waits.
        let permits = std::iter::repeat_n(self.permit, waiting.len());
        let waiting = waiting.zip(permits);
        let entries = running.chain(waiting.map(|(index, permit)| Entry::Waiting(index, permit)));
        let (state, request) = (self.state, self.request);
        let at_once = at_once(&state, &request);
        let deltas = move |(index, entry)| {
            let (state, request) = (Arc::clone(&state), Arc::clone(&request));
            let unfolded = stream::unfold(entry, move |entry| {
                let (state, request) = (Arc::clone(&state), Arc::clone(&request));
                async move { next(entry, &state, &request).await }
            });
            unfolded.map(move |delta| (index, delta)).boxed()
        };
        stream::iter(entries.enumerate())
            .map(deltas)
            .flatten_unordered(at_once)
    }

    /// Waits for all completions and returns each as a single delta.
    ///
    /// # Errors
    /// The first failure of any completion.
    pub async fn collect(self) -> Result<Vec<TextDelta>, ApiError> {
        let mut totals = vec![TextDelta::default(); self.request.completions()];
        let mut deltas = self.deltas();
        while let Some((index, delta)) = deltas.next().await {
            totals[index].append(delta?);
        }
        Ok(totals)
    }
}

/// The next delta of a completion, which is submitted first if it waits.
async fn next(
    entry: Entry,
    state: &AppState,
    request: &GenerateRequest,
) -> Option<(Result<TextDelta, ApiError>, Entry)> {
    let mut completion = match entry {
        Entry::Running(completion) => completion,
        Entry::Waiting(index, permit) => loop {
            match state.engine.submit(request.engine_request(index)) {
                Ok(outputs) => {
                    break Box::new(Completion::new(state, request, index, outputs, permit));
                }
                Err(SubmitError::QueueFull { .. } | SubmitError::ShareFull { .. }) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(SubmitError::Stopped) => {
                    let entry = Entry::Waiting(index, permit);
                    return Some((Err(ApiError::EngineStopped), entry));
                }
            }
        },
    };
    let delta = completion.next().await?;
    Some((delta, Entry::Running(completion)))
}
