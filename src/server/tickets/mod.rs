//! Ticket routes: upload, list, get, delete.

mod wire;

use std::sync::Arc;

use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Multipart, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use tempfile::NamedTempFile;

use super::blocking::blocking;
use super::caller::Caller;
use super::error::ApiError;
use super::preconditions::condition;
use super::quota::{StorePermit, Stored};
use super::state::AppState;
use super::upload;
use crate::registry::Name;
use wire::TicketFacts;

/// `GET /v1/tickets`; `?status=refused` lists the files of the folder that are not served.
pub async fn list(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    match query.status.as_deref() {
        None | Some("served") => {}
        Some("refused") => return Ok(refused(&state, &caller)),
        Some(_) => return Err(ApiError::invalid("status", "must be served or refused")),
    }
    let tickets = state.registry.visible(caller.tenant.as_ref());
    let data: Vec<_> = tickets.iter().map(|t| TicketFacts::new(t)).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// Refused files in one list.
const MAX_REFUSED: usize = 1000;

/// Query of `GET /v1/tickets`.
#[derive(Deserialize)]
pub struct ListQuery {
    status: Option<String>,
}

/// The files that the caller may know of and that are not served, each with the reason.
fn refused(state: &AppState, caller: &Caller) -> Response {
    let files = state.registry.refused(caller.tenant.as_ref());
    let data: Vec<_> = files
        .iter()
        .take(MAX_REFUSED)
        .map(|file| {
            let path = file.path.to_string_lossy();
            json!({"object": "refused_file", "file": path, "reason": &file.reason})
        })
        .collect();
    let total = files.len();
    Json(json!({"object": "list", "data": data, "total": total})).into_response()
}

/// `GET /v1/tickets/{name}`; the name may be an alias, `alias@digest` or a digest.
pub async fn get(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name?;
    let ticket = state.registry.get(caller.tenant.as_ref(), &name);
    let ticket = ticket.ok_or(ApiError::TicketNotFound(name))?;
    blocking(move || wire::whole(&state, &ticket)).await
}

/// `DELETE /v1/tickets/{name}`. Running requests keep their lease.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(alias) = name?;
    caller.trail.ticket(&alias);
    let condition = condition(&headers, None)?;
    let response = json!({"object": "ticket", "name": &alias, "deleted": true});
    blocking(move || {
        let name = Name::new(caller.tenant.as_ref(), &alias);
        let removed = state.registry.remove(name, &condition)?;
        caller.trail.digest(removed.digest());
        let metrics = &state.metrics.server;
        metrics.ticket_deleted(name.owner_label(), name.alias);
        Ok(())
    })
    .await?;
    Ok(Json(response).into_response())
}

/// `POST /v1/tickets`: a multipart form with `name`, `file` and optionally `replace`, in any order.
/// The ticket belongs to the caller's tenant; without one it is public.
pub async fn create(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, ApiError> {
    let mut form = form.map_err(|error| ApiError::BadForm(error.body_text()))?;
    let upload::Upload {
        name,
        replace,
        file,
        place: _place,
    } = upload::receive(&mut form, &state, &caller).await?;
    let condition = condition(&headers, replace)?;
    let state = Arc::clone(&state);
    let whole = blocking(move || {
        let name = Name::new(caller.tenant.as_ref(), &name);
        let _stored = store(&state, &caller, name, &file)?;
        let ticket = state.registry.publish(name, file, &condition)?;
        caller.trail.digest(ticket.digest());
        tracing::info!(ticket = %ticket.name(), digest = %ticket.digest(), "published a ticket");
        wire::whole(&state, &ticket)
    })
    .await?;
    Ok((StatusCode::CREATED, whole).into_response())
}

/// Admits the received `file` to the tickets that the caller owns, where it becomes `name`, until
/// the returned permit is dropped: after it is published.
///
/// # Errors
/// The caller's tenant owns as much as it may, or the file's size cannot be read.
fn store(
    state: &AppState,
    caller: &Caller,
    name: Name<'_>,
    file: &NamedTempFile,
) -> Result<StorePermit, ApiError> {
    let metadata = file.as_file().metadata();
    let bytes = metadata.map_err(|error| ApiError::Internal(error.to_string()))?;
    let stored = || {
        let mut stored = Stored::default();
        for ticket in state.registry.owned(name.owner) {
            if !ticket.alias().eq_ignore_ascii_case(name.alias) {
                stored.tickets += 1;
                stored.bytes += ticket.facts().file_bytes;
            }
        }
        stored
    };
    state.quota.store(caller, stored, bytes.len())
}
