//! Ticket routes: upload, list, get, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::rejection::PathRejection;
use axum::extract::{Multipart, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;

use super::blocking::blocking;
use super::body::DISCARD_TIMEOUT;
use super::error::ApiError;
use super::state::AppState;
use super::timestamp::unix_seconds;
use crate::registry::Generation;

/// Largest value of `name` and `replace`, in bytes.
const MAX_FIELD_BYTES: usize = 256;

/// A ticket in wire format. Its path is never sent.
#[derive(Serialize)]
struct TicketFacts<'a> {
    object: &'static str,
    name: &'a str,
    digest: String,
    created: u64,
    bytes: u64,
    resident_bytes: usize,
    nonzeros: usize,
    density: f64,
    base: BaseRef<'a>,
    license: Option<&'a str>,
    training: Option<&'a Value>,
}

/// The base that a ticket's file names.
#[derive(Serialize)]
struct BaseRef<'a> {
    name: &'a str,
    fingerprint: String,
}

impl<'a> TicketFacts<'a> {
    fn new(generation: &'a Generation) -> Self {
        let metadata = generation.metadata();
        Self {
            object: "ticket",
            name: generation.alias(),
            digest: generation.digest().to_string(),
            created: unix_seconds(generation.created()),
            bytes: generation.file_bytes(),
            resident_bytes: generation.resident_bytes(),
            nonzeros: generation.nonzeros(),
            density: metadata.density,
            base: BaseRef {
                name: &metadata.base_name,
                fingerprint: metadata.base_fingerprint.to_string(),
            },
            license: metadata.license.as_deref(),
            training: metadata.training.as_ref(),
        }
    }
}

/// `GET /v1/tickets`
pub async fn list(State(state): State<Arc<AppState>>) -> Response {
    let tickets = state.registry.list();
    let data: Vec<_> = tickets.iter().map(|t| TicketFacts::new(t)).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

/// `GET /v1/tickets/{name}`
pub async fn get(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name?;
    match state.registry.get(&name) {
        Some(ticket) => Ok(Json(TicketFacts::new(&ticket)).into_response()),
        None => Err(ApiError::TicketNotFound(name)),
    }
}

/// `DELETE /v1/tickets/{name}`. Running requests keep their lease.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name?;
    let response = json!({"object": "ticket", "name": &name, "deleted": true});
    blocking(move || {
        state.registry.remove(&name)?;
        state.metrics.server.ticket_deleted(&name);
        Ok(())
    })
    .await?;
    Ok(Json(response).into_response())
}

/// `POST /v1/tickets`: a multipart form with `name`, `file` and optionally `replace`, in any order.
pub async fn upload(
    State(state): State<Arc<AppState>>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, ApiError> {
    let mut form = form.map_err(|error| ApiError::BadForm(error.body_text()))?;
    let upload = match receive(&mut form, &state).await {
        Ok(upload) => upload,
        Err(error) => {
            let rest = async { while let Ok(Some(_)) = form.next_field().await {} };
            // Best effort: the response is the same if the time runs out.
            let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
            return Err(error);
        }
    };
    // Bounds the memory of concurrent validations. The semaphore is never closed.
    let _permit = state.uploads.acquire().await;
    let registry = state.registry.clone();
    let ticket =
        blocking(move || Ok(registry.publish(&upload.name, upload.file, upload.replace)?)).await?;
    tracing::info!(ticket = ticket.alias(), digest = %ticket.digest(), "published a ticket");
    let facts = Json(TicketFacts::new(&ticket));
    Ok((StatusCode::CREATED, facts).into_response())
}

/// A received form. The file is deleted on drop unless it is published.
struct Upload {
    name: String,
    replace: bool,
    file: NamedTempFile,
}

async fn receive(form: &mut Multipart, state: &Arc<AppState>) -> Result<Upload, ApiError> {
    let (mut name, mut replace, mut file) = (None, None, None);
    while let Some(mut field) = form.next_field().await.map_err(bad_form)? {
        let field_name = field.name().unwrap_or_default().to_owned();
        let duplicate = match field_name.as_str() {
            "name" => name
                .replace(short_text(&mut field, "name").await?)
                .is_some(),
            "replace" => replace
                .replace(flag(&mut field, "replace").await?)
                .is_some(),
            "file" => file.replace(spool(&mut field, state).await?).is_some(),
            other => {
                let problem = "is not a field of an upload; expected `name`, `file` or `replace`";
                let other: String = other.chars().take(MAX_FIELD_BYTES).collect();
                return Err(ApiError::invalid(other, problem));
            }
        };
        if duplicate {
            return Err(ApiError::invalid(field_name, "is given twice"));
        }
    }
    let missing = |param: &str| ApiError::invalid(param, "is missing from the form");
    Ok(Upload {
        name: name.ok_or_else(|| missing("name"))?,
        replace: replace.unwrap_or(false),
        file: file.ok_or_else(|| missing("file"))?,
    })
}

async fn short_text(field: &mut Field<'_>, name: &'static str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(bad_form)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let problem = format!("is longer than {MAX_FIELD_BYTES} bytes");
            return Err(ApiError::invalid(name, problem));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid(name, "is not UTF-8"))
}

async fn flag(field: &mut Field<'_>, name: &'static str) -> Result<bool, ApiError> {
    match short_text(field, name).await?.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::invalid(name, "must be true or false")),
    }
}

/// Streams the field to a temporary file in the ticket folder, which is removed on an error or a
/// disconnect.
async fn spool(field: &mut Field<'_>, state: &Arc<AppState>) -> Result<NamedTempFile, ApiError> {
    let registry = state.registry.clone();
    let staged = blocking(move || Ok(registry.stage()?)).await?;
    let path = staged.path().to_owned();
    let io_error = |error| ApiError::from(state.registry.staging_failed(&path, error));
    let file = staged.as_file().try_clone().map_err(io_error)?;
    let mut file = tokio::fs::File::from_std(file);
    let limit = state.options.max_ticket_bytes;
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await.map_err(bad_form)? {
        bytes += chunk.len() as u64;
        if bytes > limit {
            let what = "ticket";
            return Err(ApiError::TooLarge { what, limit });
        }
        file.write_all(&chunk).await.map_err(io_error)?;
    }
    file.flush().await.map_err(io_error)?;
    Ok(staged)
}

fn bad_form(error: MultipartError) -> ApiError {
    ApiError::BadForm(error.body_text())
}
