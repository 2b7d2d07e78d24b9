//! The path that both completion endpoints share: read the body, validate the fields, submit, then
//! stream or collect.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::extract::Request;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::access::Tenant;
use crate::engine::FinishReason;
use crate::registry::{Lease, RegistryError};
use crate::server::blocking::blocking;
use crate::server::body::Received;
use crate::server::caller::Caller;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, brief};
use crate::server::generate::{self, GenerateRequest, Prompt, TextDelta, Usage};
use crate::server::quota::RequestPermit;
use crate::server::sampling::Sampling;
use crate::server::sse::{self, ChunkWriter, EventResult};
use crate::server::state::AppState;
use crate::server::timestamp::unix_seconds;
use crate::text::Text;

/// Fields and wire format of one completion endpoint; a value serves one response.
pub trait Endpoint: Send + Sized + 'static {
    /// Prefix of response ids, without the dash.
    const ID_PREFIX: &'static str;
    /// `object` of a whole response.
    const OBJECT: &'static str;
    /// `object` of a streamed chunk.
    const CHUNK_OBJECT: &'static str;

    /// Entry of `choices` in a whole response.
    type Choice: Serialize;
    /// Entry of `choices` in a streamed chunk.
    type ChunkChoice: Serialize;

    /// Validates all fields but `model`. Renders and encodes the prompts, so it may block.
    ///
    /// # Errors
    /// The first invalid field.
    fn validate(fields: Fields<'_>, state: &AppState) -> Result<(Vec<Prompt>, Sampling), ApiError>;

    /// State of a response with this number of completions. `logprobs` says whether
    /// log-probabilities were requested.
    fn new(text: &Arc<Text>, completions: usize, logprobs: bool) -> Self;

    /// The whole completion at `index` in wire format.
    fn choice(&mut self, index: usize, completion: TextDelta) -> Self::Choice;

    /// Chunks for a delta of the completion at `index`.
    fn chunk_choices(&mut self, index: usize, delta: TextDelta) -> Vec<Self::ChunkChoice>;
}

/// Answers a completion request.
///
/// # Errors
/// An invalid request, or a failure before the response begins. Later failures of a stream are
/// events in it.
pub async fn respond<E: Endpoint>(
    state: Arc<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let caller = Caller::of(request.extensions());
    let (permit, body, turn) = admit(&state, &caller, request)
        .await
        .inspect_err(|error| state.refusals.record(&state.metrics, error))?;
    let (request, model) = {
        let prepared_by = Arc::clone(&state);
        let tenant = caller.tenant.clone();
        let prepare = move || {
            let _turn = turn;
            prepare::<E>(&prepared_by, &body.into_bytes()?, (caller, permit), arrived)
        };
        let (mut request, model) = blocking(prepare).await?;
        request.ticket = lease(&model, &state, tenant.as_ref()).await?;
        (request, model)
    };
    let mut usage = Usage::of_prompts(&request.prompts);
    let (stream, include_usage) = (request.sampling.stream, request.sampling.include_usage);
    let logprobs = request.sampling.params.logprobs.is_some();
    let object = if stream { E::CHUNK_OBJECT } else { E::OBJECT };
    let header = Header::new(E::ID_PREFIX, object, model);
    let completions = generate::submit(&state, request)?;
    let mut endpoint = E::new(&state.text, completions.len(), logprobs);
    if stream {
        let chunks = Chunks {
            header,
            include_usage,
            endpoint,
        };
        return Ok(sse::respond(completions, chunks, usage));
    }
    let completions = generate::collect(completions).await?;
    let mut choices = Vec::with_capacity(completions.len());
    for (index, completion) in completions.into_iter().enumerate() {
        usage.add(&completion);
        choices.push(endpoint.choice(index, completion));
    }
    Ok(Json(header.with(&choices, Some(Some(usage)))).into_response())
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

/// Turns a body into a validated request, still without its ticket, and the requested model's name.
/// May block.
fn prepare<E: Endpoint>(
    state: &AppState,
    body: &[u8],
    (caller, permit): (Caller, RequestPermit),
    arrived: Instant,
) -> Result<(GenerateRequest, String), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields, state, caller.tenant.as_ref())?;
    let priority = fields.take("priority")?.unwrap_or(0);
    let cache_salt = take_cache_salt(&mut fields)?;
    let (prompts, sampling) = E::validate(fields, state)?;
    let request = GenerateRequest {
        prompts,
        sampling,
        ticket: None,
        tenant: caller.tenant,
        permit,
        priority,
        cache_salt,
        arrived,
    };
    Ok((request, model))
}

/// The requested model: the base or a ticket. The default is the base, as in vLLM.
fn take_model(
    fields: &mut Fields<'_>,
    state: &AppState,
    tenant: Option<&Tenant>,
) -> Result<String, ApiError> {
    let base = &state.base.manifest.name;
    let name = fields.take("model")?.unwrap_or_else(|| base.clone());
    if name != *base && state.registry.get(tenant, &name).is_none() {
        return Err(ApiError::ModelNotFound(brief(name)));
    }
    Ok(name)
}

/// The salt of the request's cached KV blocks, bounded because each of its blocks is keyed by it.
fn take_cache_salt(fields: &mut Fields<'_>) -> Result<Option<Arc<str>>, ApiError> {
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

/// Leases the ticket that `model` names; `None` for the base. Loads the ticket beside the engine's
/// steps, and waits in line if there is no memory for it; a disconnect leaves the line.
async fn lease(
    model: &str,
    state: &AppState,
    tenant: Option<&Tenant>,
) -> Result<Option<Lease>, ApiError> {
    if model == state.base.manifest.name {
        return Ok(None);
    }
    let began = Instant::now();
    let lease = state.registry.lease_in_turn(tenant, model).await;
    let waited = began.elapsed().as_secs_f64();
    state.metrics.tickets.wait.observe(waited);
    match lease.inspect_err(|error| state.refusals.record_ticket(&state.metrics, error)) {
        Ok(lease) => Ok(Some(lease)),
        Err(RegistryError::Unknown(alias)) => Err(ApiError::ModelNotFound(alias)),
        Err(error) => Err(error.into()),
    }
}

/// OpenAI's name of a finish reason.
pub fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Fields that a response and all of its chunks repeat.
#[derive(Debug)]
struct Header {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Header {
    fn new(id_prefix: &str, object: &'static str, model: String) -> Self {
        Self {
            id: format!("{id_prefix}-{:032x}", rand::random::<u128>()),
            object,
            created: unix_seconds(SystemTime::now()),
            model,
        }
    }

    fn with<'a, C>(&'a self, choices: &'a [C], usage: Option<Option<Usage>>) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

/// A whole response, or one chunk of a stream.
#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// In streams: absent unless requested, `null` in all chunks except the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// Writer of the chunks of one stream.
struct Chunks<E> {
    header: Header,
    include_usage: bool,
    endpoint: E,
}

impl<E: Endpoint> ChunkWriter for Chunks<E> {
    fn delta(&mut self, index: usize, delta: TextDelta) -> Vec<EventResult> {
        let usage = self.include_usage.then_some(None);
        let choices = self.endpoint.chunk_choices(index, delta);
        choices
            .into_iter()
            .map(|choice| Event::default().json_data(self.header.with(&[choice], usage)))
            .collect()
    }

    fn usage(&self, usage: Usage) -> Option<EventResult> {
        let no_choices: [(); 0] = [];
        let chunk = self.header.with(&no_choices, Some(Some(usage)));
        self.include_usage
            .then(|| Event::default().json_data(chunk))
    }
}
