//! The path of every request for completions, whatever its protocol: read the body, validate the
//! fields, submit, then stream or collect.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::blocking::blocking;
use super::body::Received;
use super::caller::Caller;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{self, GenerateRequest, Usage};
use super::ignored::Ignored;
use super::protocol::{Facts, Job, Protocol};
use super::quota::RequestPermit;
use super::selected::Selected;
use super::state::AppState;
use super::stream;
use crate::access::Tenant;

/// Answers a request for completions.
///
/// # Errors
/// An invalid request, or a failure before the response begins. Later failures of a stream are
/// messages in it.
pub async fn respond<P: Protocol>(
    state: Arc<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let caller = Caller::of(request.extensions());
    let tenant = caller.tenant.clone();
    let prepared = prepare(&state, &caller, request, move |fields, state| {
        Submission::<P>::read(fields, state, tenant.as_ref())
    });
    let (permit, submission, ignored) = prepared.await?;
    let Submission {
        selected,
        job,
        facts,
        priority,
        cache_salt,
    } = submission;
    let request = GenerateRequest {
        prompts: job.prompts,
        sampling: job.sampling,
        tickets: selected.lease(&state, caller.tenant.as_ref()).await?,
        tenant: caller.tenant,
        priority,
        cache_salt,
        arrived,
    };
    let mut usage = Usage::of_prompts(&request.prompts);
    let completions = generate::submit(&state, request, permit)?;
    let response = if job.stream {
        stream::respond(completions, job.protocol, facts, usage)
    } else {
        let completions = completions.collect().await?;
        completions.iter().for_each(|whole| usage.add(whole));
        let body = job.protocol.whole(&facts, completions, usage);
        let kind = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, kind)], body).into_response()
    };
    Ok(ignored.told(response))
}

/// Receives the body of a request that its caller may send now, waits for the turn to prepare it,
/// and validates its fields by `read`, which may block. The caller's permit lasts as long as the
/// request is in progress.
///
/// # Errors
/// The caller has as much in progress as it may, or there is no room for more; a body that is not a
/// JSON object; those of `read`; a field that it leaves, if the server is strict.
pub async fn prepare<T: Send + 'static>(
    state: &Arc<AppState>,
    caller: &Caller,
    request: Request,
    read: impl FnOnce(&mut Fields<'_>, &AppState) -> Result<T, ApiError> + Send + 'static,
) -> Result<(RequestPermit, T, Ignored), ApiError> {
    let (permit, body, turn) = admit(state, caller, request)
        .await
        .inspect_err(|error| state.refusals.record(&state.metrics, error))?;
    let state = Arc::clone(state);
    let (value, ignored) = blocking(move || {
        let _turn = turn;
        let body = body.into_bytes()?;
        let mut fields = Fields::parse(&body)?;
        let value = read(&mut fields, &state)?;
        Ok((value, Ignored::of(&fields, &state)?))
    })
    .await?;
    Ok((permit, value, ignored))
}

/// Receives the body of a request that its caller may send now, and waits for the turn to prepare
/// it.
///
/// # Errors
/// The caller has as much in progress as it may, or there is no room for more.
async fn admit(
    state: &AppState,
    caller: &Caller,
    request: Request,
) -> Result<(RequestPermit, Received, OwnedSemaphorePermit), ApiError> {
    let permit = state.quota.enter(caller)?;
    let (party, limit) = (&caller.tenant, state.options.max_body_bytes);
    let body = state.bodies.receive(party, request, limit).await?;
    let turn = state.preparation.turn(party, body.len()).await?;
    Ok((permit, body, turn))
}

/// A validated request for completions, still without its ticket.
struct Submission<P> {
    selected: Selected,
    job: Job<P>,
    facts: Facts,
    priority: i32,
    cache_salt: Option<Arc<str>>,
}

impl<P: Protocol> Submission<P> {
    /// Takes all fields. May block.
    fn read(
        fields: &mut Fields<'_>,
        state: &AppState,
        tenant: Option<&Tenant>,
    ) -> Result<Self, ApiError> {
        let selected = Selected::take(P::model(fields)?, fields, state, tenant)?;
        let priority = fields.take("priority")?.unwrap_or(0);
        let cache_salt = take_cache_salt(fields)?;
        let job = P::read(fields, state)?;
        selected.check_choices(job.sampling.n)?;
        Ok(Self {
            facts: Facts::new(selected.model.clone(), state),
            selected,
            job,
            priority,
            cache_salt,
        })
    }
}

/// The salt of the request's cached KV blocks, bounded because each of its blocks is keyed by it.
///
/// # Errors
/// It has no bytes, or too many.
pub fn take_cache_salt(fields: &mut Fields<'_>) -> Result<Option<Arc<str>>, ApiError> {
    const NAME: &str = "cache_salt";
    const MAX_BYTES: usize = 256;
    let salt: Option<String> = fields.take(NAME)?;
    match salt {
        Some(salt) if salt.is_empty() || salt.len() > MAX_BYTES => {
            let problem = format!("must have 1 to {MAX_BYTES} bytes, got {}", salt.len());
            Err(ApiError::invalid(NAME, problem))
        }
        salt => Ok(salt.map(Arc::from)),
    }
}
