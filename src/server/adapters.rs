//! vLLM's routes for adapters: `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`. They
//! take files of the ticket folder only.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;

use super::blocking::blocking;
use super::caller::Caller;
use super::error::ApiError;
use super::fields::Fields;
use super::state::AppState;
use super::tickets::take_away;
use crate::registry::{Condition, Name, RegistryError};

/// `POST /v1/load_lora_adapter` with `lora_name`, `lora_path` and optionally `load_inplace`.
pub async fn load(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<String, ApiError> {
    let body = state
        .bodies
        .read(body, state.options.max_body_bytes)
        .await?;
    let mut fields = Fields::parse(&body)?;
    let alias: String = required(&mut fields, "lora_name")?;
    let path: String = required(&mut fields, "lora_path")?;
    let replace = fields.take("load_inplace")?.unwrap_or(false);
    if path.contains("://") {
        let problem = "must be a path below the ticket folder, not a URL";
        return Err(ApiError::invalid("lora_path", problem));
    }
    let condition = Condition {
        replace,
        ..Condition::create()
    };
    blocking(move || {
        let name = Name::new(caller.tenant.as_ref(), &alias);
        let loaded = state
            .registry
            .load_file(name, &PathBuf::from(path), &condition);
        caller.trail.ticket(&alias);
        let ticket = loaded.map_err(|error| match error {
            RegistryError::Exists(alias) => ApiError::invalid(
                "lora_name",
                format!("`{alias}` is loaded already; to replace it, set `load_inplace` to true"),
            ),
            error => error.into(),
        })?;
        caller.trail.digest(ticket.digest());
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
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<String, ApiError> {
    let body = state
        .bodies
        .read(body, state.options.max_body_bytes)
        .await?;
    let alias = required(&mut Fields::parse(&body)?, "lora_name")?;
    blocking(move || {
        take_away(&state, &caller, &alias, |name| state.registry.unload(name))?;
        Ok(format!(
            "Success: LoRA adapter '{alias}' removed successfully."
        ))
    })
    .await
}

fn required(fields: &mut Fields<'_>, name: &'static str) -> Result<String, ApiError> {
    match fields.take::<String>(name)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(ApiError::invalid(name, "is required")),
    }
}
