//! Health, readiness, metrics, and facts about the base.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::caller::Caller;
use super::error::ApiError;
use super::state::AppState;
use crate::access::Scope;
use crate::ticket::Digest;

/// `GET /health`, and `/ping` as SageMaker calls it: 200 while the engine's thread runs and no step
/// takes longer than `--step-timeout`; `degraded` with the reason while tickets cannot be changed.
pub async fn health(State(state): State<Arc<AppState>>) -> Response {
    if state.engine.is_stopped() {
        return ApiError::EngineStopped.into_response();
    }
    if let Some(time) = state.hangs_for() {
        let seconds = time.as_secs();
        tracing::error!(seconds, "the engine hangs in a step");
        return ApiError::EngineHangs { seconds }.into_response();
    }
    match state.registry.trouble() {
        Some(trouble) => {
            Json(json!({"status": "degraded", "reason": trouble.to_string()})).into_response()
        }
        None => Json(json!({"status": "ok"})).into_response(),
    }
}

/// Whether probes and scrapers call this path: it is answered while connections are scarce, and
/// during the drain.
pub fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/ping" | "/ready" | "/metrics")
}

/// Response to any request before the base is loaded: healthy, but not ready.
pub fn starting(request: &Request) -> Response {
    match request.uri().path() {
        "/health" | "/ping" => Json(json!({"status": "ok"})).into_response(),
        "/ready" => unready("starting"),
        _ => ApiError::Starting.into_response(),
    }
}

fn unready(status: &str) -> Response {
    let body = Json(json!({"status": status}));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// `GET /ready`: 200 if the server accepts requests, that is, the engine runs, does not hang, and
/// shutdown has not begun.
pub async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let status = if state.draining.load(Ordering::Acquire) {
        "draining"
    } else if state.engine.is_stopped() {
        "stopped"
    } else if state.hangs_for().is_some() {
        "engine_hangs"
    } else if state.engine.is_running() {
        return Json(json!({"status": "ready"})).into_response();
    } else {
        "starting"
    };
    unready(status)
}

/// `GET /metrics`: the series that the caller may see, in the Prometheus text format.
pub async fn metrics(
    State(state): State<Arc<AppState>>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let series = &state.metrics.server;
    series.tickets.set(state.registry.len() as i64);
    let usage = state.registry.usage();
    series.tickets_resident.set(usage.resident as i64);
    let tickets = &state.metrics.tickets;
    tickets.host_bytes.set(usage.used.host as i64);
    tickets.host_budget.set(usage.budget.host as i64);
    tickets.device_bytes.set(usage.used.device as i64);
    tickets.leased.set(usage.leased as i64);
    tickets.pinned.set(usage.pinned as i64);
    tickets.waiting.set(usage.waiting as i64);
    series
        .unread_output_bytes
        .set(state.engine.unread_bytes() as i64);
    let text = match &caller.tenant {
        Some(tenant) => state.metrics.render_for(tenant.as_str()),
        None => state.metrics.render(),
    };
    let text = text.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// Query of `GET /v1/base`.
#[derive(Deserialize)]
pub struct BaseQuery {
    #[serde(default)]
    verify: bool,
}

/// The base in wire format.
#[derive(Serialize)]
struct BaseFacts<'a> {
    object: &'static str,
    name: &'a str,
    fingerprint: String,
    dtype: &'a str,
    quantized: bool,
    weight_bytes: usize,
    parameters: usize,
    weights: usize,
    adaptable_weights: usize,
    max_model_len: usize,
    loaded_digest: String,
    #[serde(flatten)]
    verified: Option<Verified>,
}

/// Result of `?verify=true`.
#[derive(Serialize)]
struct Verified {
    resident_digest: String,
    intact: bool,
}

/// `GET /v1/base`: facts about the base. `?verify=true` also digests its resident parameters, with
/// every ticket reverted, and compares the digest to the one taken after loading. That takes
/// engine time, so it is the operator's: it requires the scope `admin`, and the operator's port if
/// there is one.
pub async fn base(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: Result<Query<BaseQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|_| ApiError::invalid("verify", "must be true or false"))?;
    if query.verify {
        caller.begin("verify");
        if !caller.on_admin_port {
            return Err(ApiError::UnknownUrl("GET /v1/base?verify=true".to_owned()));
        }
        caller.require(Scope::Admin)?;
    }
    let base = &state.base;
    let verified = if query.verify {
        let resident: Digest = state
            .engine
            .base_digest()
            .await
            .ok_or(ApiError::EngineStopped)?;
        Some(Verified {
            resident_digest: resident.to_string(),
            intact: resident == base.loaded_digest,
        })
    } else {
        None
    };
    let manifest = &base.manifest;
    let shapes = manifest.parameters.values().map(|p| &p.shape);
    let facts = BaseFacts {
        object: "base",
        name: &manifest.name,
        fingerprint: manifest.fingerprint.to_string(),
        dtype: &base.dtype,
        quantized: base.quantized,
        weight_bytes: base.weight_bytes,
        parameters: manifest.parameters.len(),
        weights: shapes.map(|shape| shape.iter().product::<usize>()).sum(),
        adaptable_weights: manifest.adaptable_weights(),
        max_model_len: state.engine.limits().max_model_len,
        loaded_digest: base.loaded_digest.to_string(),
        verified,
    };
    Ok(Json(facts).into_response())
}
