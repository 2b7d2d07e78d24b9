//! Facts about the server for those who run it: version, load, limits.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::caller::Caller;
use super::state::AppState;

/// Version of the server.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answer of `GET /version`.
#[derive(Serialize)]
pub struct Version {
    version: &'static str,
}

/// `GET /version`: the version, as vLLM tells its own.
pub async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}

/// Answer of `GET /load`.
#[derive(Serialize)]
pub struct Load {
    server_load: usize,
}

/// `GET /load`: the number of generation requests in progress; to a tenant, of its own.
pub async fn load(State(state): State<Arc<AppState>>, caller: Caller) -> Json<Load> {
    let server_load = state.quota.requests(caller.tenant.as_ref());
    Json(Load { server_load })
}

/// Answer of `GET /server_info`.
#[derive(Serialize)]
pub struct ServerInfo {
    version: &'static str,
    uptime_seconds: u64,
    base: BaseInfo,
    limits: LimitInfo,
    tickets: TicketInfo,
    /// Whether requests need a key.
    keys: bool,
    draining: bool,
}

#[derive(Serialize)]
struct BaseInfo {
    name: String,
    fingerprint: String,
    dtype: String,
    quantized: bool,
    weight_bytes: usize,
}

#[derive(Serialize)]
struct LimitInfo {
    max_model_len: usize,
    max_logprobs: usize,
    /// Sequences that run or wait at once: `--max-num-seqs` and `--max-queue` together.
    max_sequences: usize,
    max_body_bytes: usize,
    max_ticket_bytes: u64,
    upload_spool_bytes: u64,
    /// Absent without a limit.
    step_timeout_seconds: Option<u64>,
}

#[derive(Serialize)]
struct TicketInfo {
    count: usize,
    host_budget_bytes: usize,
    device_budget_bytes: usize,
}

/// `GET /server_info`: the version, the base and the limits that the server runs with.
pub async fn server_info(State(state): State<Arc<AppState>>) -> Json<ServerInfo> {
    let (base, options, limits) = (&state.base, &state.options, state.engine.limits());
    let budget = state.registry.usage().budget;
    Json(ServerInfo {
        version: VERSION,
        uptime_seconds: state.started.elapsed().unwrap_or_default().as_secs(),
        base: BaseInfo {
            name: base.manifest.name.clone(),
            fingerprint: base.manifest.fingerprint.to_string(),
            dtype: base.dtype.clone(),
            quantized: base.quantized,
            weight_bytes: base.weight_bytes,
        },
        limits: LimitInfo {
            max_model_len: limits.max_model_len,
            max_logprobs: limits.max_logprobs,
            max_sequences: state.engine.capacity(),
            max_body_bytes: options.max_body_bytes,
            max_ticket_bytes: options.max_ticket_bytes,
            upload_spool_bytes: options.upload_spool_bytes,
            step_timeout_seconds: options.step_timeout.map(|time| time.as_secs()),
        },
        tickets: TicketInfo {
            count: state.registry.len(),
            host_budget_bytes: budget.host,
            device_budget_bytes: budget.device,
        },
        keys: state.access.keys.is_some(),
        draining: state.draining.load(std::sync::atomic::Ordering::Acquire),
    })
}
