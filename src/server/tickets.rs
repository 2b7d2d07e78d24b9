//! Ticket routes: upload, list, get, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::PathRejection;
use axum::extract::{Multipart, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::blocking::blocking;
use super::error::ApiError;
use super::state::AppState;
use super::timestamp::unix_seconds;
use super::upload;
use crate::registry::Generation;

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
pub async fn create(
    State(state): State<Arc<AppState>>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, ApiError> {
    let mut form = form.map_err(|error| ApiError::BadForm(error.body_text()))?;
    let upload::Upload {
        name,
        replace,
        file,
        place: _place,
    } = upload::receive(&mut form, &state).await?;
    let registry = state.registry.clone();
    let ticket = blocking(move || Ok(registry.publish(&name, file, replace)?)).await?;
    tracing::info!(ticket = ticket.alias(), digest = %ticket.digest(), "published a ticket");
    let facts = Json(TicketFacts::new(&ticket));
    Ok((StatusCode::CREATED, facts).into_response())
}
