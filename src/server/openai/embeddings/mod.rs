//! `POST /v1/embeddings`

mod request;
mod vector;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use self::request::{EmbeddingRequest, INPUT};
use self::vector::Written;
use crate::access::Tenant;
use crate::engine::{self, OutputStream, SequenceError};
use crate::metrics::FinishedReason;
use crate::registry::Lease;
use crate::server::blocking::blocking;
use crate::server::caller::Caller;
use crate::server::error::ApiError;
use crate::server::exchange::prepare;
use crate::server::generate::{at_once, submit_in_turn};
use crate::server::meter::Meter;
use crate::server::protocol::json;
use crate::server::quota::RequestPermit;
use crate::server::state::AppState;

/// The answer.
#[derive(Serialize)]
struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

/// The embedding of one prompt.
#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Written,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Handler of the route.
pub async fn create(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let caller = Caller::of(request.extensions());
    let tenant = caller.tenant.clone();
    let prepared = prepare(&state, &caller, request, move |fields, state| {
        EmbeddingRequest::take(fields, state, tenant.as_ref())
    });
    let (mut permit, request, ignored) = prepared.await?;
    let mut tickets = request
        .selected
        .lease(&state, caller.tenant.as_ref())
        .await?;
    let tokens = request.prompts.iter().map(Vec::len).sum();
    take_tokens(&mut permit, tokens)
        .inspect_err(|error| state.refusals.record(&state.metrics, error))?;
    let (model, form) = (request.selected.model.clone(), request.form);
    let batch = Batch {
        state,
        request,
        ticket: tickets.pop().flatten(),
        tenant: caller.tenant,
        arrived,
    };
    let vectors = Arc::new(batch).vectors().await?;
    let body = blocking(move || {
        let embedding = |(index, vector)| Embedding {
            object: "embedding",
            index,
            embedding: form.write(vector),
        };
        Ok(json(&Embeddings {
            object: "list",
            data: vectors.into_iter().enumerate().map(embedding).collect(),
            model,
            usage: Usage {
                prompt_tokens: tokens,
                total_tokens: tokens,
            },
        }))
    })
    .await?;
    let kind = HeaderValue::from_static("application/json");
    Ok(ignored.told(([(header::CONTENT_TYPE, kind)], body).into_response()))
}

/// Counts the prompts' tokens among those that the tenant has in progress.
fn take_tokens(permit: &mut RequestPermit, tokens: usize) -> Result<(), ApiError> {
    permit.take_tokens(tokens).map_err(|error| match error {
        ApiError::Invalid { .. } => {
            let problem =
                format!("has {tokens} tokens, more than this tenant may have in progress");
            ApiError::invalid(INPUT, problem)
        }
        error => error,
    })
}

/// Prompts on their way through the engine.
struct Batch {
    state: Arc<AppState>,
    request: EmbeddingRequest,
    ticket: Option<Lease>,
    tenant: Option<Tenant>,
    arrived: Instant,
}

impl Batch {
    /// The vectors of all prompts, in their order. Dropping the future cancels those that run and
    /// forgets the others.
    async fn vectors(self: Arc<Self>) -> Result<Vec<Vec<f32>>, ApiError> {
        let running = self.submit()?;
        let (at_once, count) = (running.len(), self.request.prompts.len());
        let waiting = (at_once..count).map(|_| None);
        let entries = running.into_iter().map(Some).chain(waiting).enumerate();
        let vector = |(index, outputs)| Arc::clone(&self).vector(index, outputs);
        let vectors = stream::iter(entries).map(vector).buffered(at_once);
        vectors.try_collect().await
    }

    /// Submits the first prompts: all or none of those that the engine holds at once.
    fn submit(&self) -> Result<Vec<OutputStream>, ApiError> {
        let (engine, metrics) = (&self.state.engine, &self.state.metrics);
        let at_once = at_once(engine, self.request.prompts.len());
        let requests = (0..at_once).map(|index| self.engine_request(index));
        let streams = engine
            .submit_all(requests.collect())
            .map_err(ApiError::from);
        let streams = streams.inspect_err(|error| self.state.refusals.record(metrics, error))?;
        if let Some(ticket) = &self.ticket {
            let name = ticket.name();
            metrics
                .server
                .ticket_requested(name.owner_label(), name.alias);
        }
        Ok(streams)
    }

    fn engine_request(&self, index: usize) -> engine::Request {
        engine::Request {
            prompt: self.request.prompts[index].clone(),
            pooling: Some(self.request.pooling),
            ticket: self.ticket.clone(),
            tenant: self.tenant.clone(),
            priority: self.request.priority,
            cache_salt: self.request.cache_salt.clone(),
            ..engine::Request::default()
        }
    }

    /// Waits for the vector of a prompt, which is submitted first if it has no `outputs`.
    async fn vector(
        self: Arc<Self>,
        index: usize,
        outputs: Option<OutputStream>,
    ) -> Result<Vec<f32>, ApiError> {
        let mut outputs = match outputs {
            Some(outputs) => outputs,
            None => submit_in_turn(&self.state.engine, || self.engine_request(index)).await?,
        };
        let metrics = Arc::clone(&self.state.metrics);
        let tokens = self.request.prompts[index].len();
        let mut meter = Meter::start(metrics, self.arrived, tokens, 0);
        match outputs.recv().await {
            Some(Ok(output)) => {
                meter.finish(FinishedReason::Stop);
                let without = || ApiError::Internal("a pooled output has no vector".to_owned());
                output.pooled.ok_or_else(without)
            }
            Some(Err(SequenceError::NotFinite)) if self.ticket.is_none() => {
                Err(ApiError::BrokenBase)
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(ApiError::EngineStopped),
        }
    }
}
