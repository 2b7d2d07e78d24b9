//! Submission of a request's completions: the first ones at once, the others of a large batch as
//! places in the queue become free.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};

use super::{Completion, GenerateRequest, TextDelta};
use crate::engine::{self, EngineHandle, OutputStream, SubmitError};
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
    let at_once = at_once(&state.engine, request.completions());
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

/// Sequences of a batch that the engine holds at once: all that fit the account's share of the
/// queue; half a share of a larger batch, which leaves the other half to other requests.
pub fn at_once(engine: &EngineHandle, batch: usize) -> usize {
    let share = engine.largest_share();
    if batch <= share {
        batch
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
        let at_once = at_once(&state.engine, request.completions());
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
        Entry::Waiting(index, permit) => {
            match submit_in_turn(&state.engine, || request.engine_request(index)).await {
                Ok(outputs) => Box::new(Completion::new(state, request, index, outputs, permit)),
                Err(error) => return Some((Err(error), Entry::Waiting(index, permit))),
            }
        }
    };
    let delta = completion.next().await?;
    Some((delta, Entry::Running(completion)))
}

/// Submits a sequence of a large batch as soon as its account's share of the queue has room.
///
/// # Errors
/// The engine has stopped.
pub async fn submit_in_turn(
    engine: &EngineHandle,
    request: impl Fn() -> engine::Request,
) -> Result<OutputStream, ApiError> {
    loop {
        match engine.submit(request()) {
            Ok(outputs) => return Ok(outputs),
            Err(SubmitError::QueueFull { .. } | SubmitError::ShareFull { .. }) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(SubmitError::Stopped) => return Err(ApiError::EngineStopped),
        }
    }
}
