//! vLLM's routes for adapters: `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`. They
//! take files of the ticket folder only.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};

use super::blocking::blocking;
use super::caller::Caller;
use super::error::ApiError;
use super::fields::Fields;
use super::named_ticket::NamedTicket;
use super::state::AppState;
use crate::registry::{Condition, RegistryError};

/// Largest body of these routes, which holds a name and a path.
const MAX_BODY_BYTES: usize = 64 << 10;

/// `POST /v1/load_lora_adapter` with `lora_name`, `lora_path` and optionally `load_inplace`.
pub async fn load(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    request: Request,
) -> Result<String, ApiError> {
    let (alias, path, replace) = read(&state, &caller, request, |fields| {
        let alias = required(fields, "lora_name")?;
        let path = required(fields, "lora_path")?;
        Ok((alias, path, fields.take("load_inplace")?.unwrap_or(false)))
    })
    .await?;
    let named = NamedTicket::new(caller, alias);
    if path.contains("://") {
        let problem = "must be a path below the ticket folder, not a URL";
        return Err(ApiError::invalid("lora_path", problem));
    }
    let condition = Condition {
        replace,
        ..Condition::create()
    };
    // As for an upload: the check reads the file into memory, and a copy takes disk.
    let party = named.tenant().cloned();
    let refused = |error: &ApiError| state.refusals.record(&state.metrics, error);
    let mut place = state.uploads.enter(&party).await.inspect_err(refused)?;
    let registry = Arc::clone(&state.registry);
    let (named, file) = blocking(move || {
        let found = registry.find_file(named.name(), Path::new(&path))?;
        Ok((named, found))
    })
    .await?;
    place.spool(file.copied_bytes()).inspect_err(refused)?;
    let loading = Arc::clone(&state);
    blocking(move || {
        // The work goes on if the client leaves, and so does its place.
        let _place = place;
        let _stored = named.store(&loading, file.bytes())?;
        let loaded = loading.registry.load_file(named.name(), &file, &condition);
        let ticket = loaded.map_err(|error| match error {
            RegistryError::Exists(alias) => ApiError::invalid(
                "lora_name",
                format!("`{alias}` is loaded already; to replace it, set `load_inplace` to true"),
            ),
            error => error.into(),
        })?;
        named.caller.trail.done(ticket.digest());
        tracing::info!(ticket = ticket.alias(), digest = %ticket.digest(), "loaded a ticket");
        let alias = ticket.alias();
        Ok(format!(
            "Success: LoRA adapter '{alias}' added successfully."
        ))
    })
    .await
}

/// `POST /v1/unload_lora_adapter` with `lora_name`. The file stays in the folder.
pub async fn unload(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    request: Request,
) -> Result<String, ApiError> {
    let alias = read(&state, &caller, request, |fields| {
        required(fields, "lora_name")
    })
    .await?;
    let named = NamedTicket::new(caller, alias);
    blocking(move || {
        named.take_away(&state, |name| state.registry.unload(name))?;
        let alias = named.alias;
        Ok(format!(
            "Success: LoRA adapter '{alias}' removed successfully."
        ))
    })
    .await
}

/// Receives a JSON body and takes from it what a route needs.
async fn read<T>(
    state: &AppState,
    caller: &Caller,
    request: Request,
    take: impl FnOnce(&mut Fields<'_>) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let limit = state.options.max_body_bytes.min(MAX_BODY_BYTES);
    let body = state.bodies.read(&caller.tenant, request, limit).await;
    let body = body.inspect_err(|error| state.refusals.record(&state.metrics, error))?;
    take(&mut Fields::parse(&body)?)
}

fn required(fields: &mut Fields<'_>, name: &'static str) -> Result<String, ApiError> {
    match fields.take::<String>(name)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(ApiError::invalid(name, "is required")),
    }
}
