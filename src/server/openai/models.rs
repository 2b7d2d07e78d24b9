//! `GET /v1/models`: the base and its tickets, which clients request in the same way.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::registry::{Generation, Name, Page, RegistryError};
use crate::server::blocking::blocking;
use crate::server::caller::Caller;
use crate::server::error::ApiError;
use crate::server::named_ticket::NamedTicket;
use crate::server::preconditions::condition;
use crate::server::state::AppState;
use crate::server::timestamp::unix_seconds;

/// A model in wire format.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The same name, never a path.
    root: &'a str,
    /// The base, for a ticket.
    parent: Option<&'a str>,
    max_model_len: usize,
}

impl<'a> Model<'a> {
    fn base(state: &'a AppState) -> Self {
        let name = &state.base.manifest.name;
        Self {
            id: name,
            object: "model",
            created: unix_seconds(state.started),
            owned_by: "tombola",
            root: name,
            parent: None,
            max_model_len: state.engine.limits().max_model_len,
        }
    }

    fn ticket(ticket: &'a Generation, state: &'a AppState) -> Self {
        let base = Self::base(state);
        Self {
            id: ticket.alias(),
            root: ticket.alias(),
            created: unix_seconds(ticket.created()),
            parent: Some(base.id),
            ..base
        }
    }
}

/// `GET /v1/models`
pub async fn list(State(state): State<Arc<AppState>>, caller: Caller) -> Response {
    let tickets = state.registry.visible(caller.tenant.as_ref(), Page::ALL);
    let models: Vec<_> = std::iter::once(Model::base(&state))
        .chain(tickets.iter().map(|ticket| Model::ticket(ticket, &state)))
        .collect();
    Json(json!({"object": "list", "data": models})).into_response()
}

/// `GET /v1/models/{id}`; the base's name may contain slashes.
pub async fn get(
    State(state): State<Arc<AppState>>,
    model: NamedTicket,
) -> Result<Response, ApiError> {
    if model.alias == state.base.manifest.name {
        return Ok(Json(Model::base(&state)).into_response());
    }
    match model.find(&state) {
        Some(ticket) => Ok(Json(Model::ticket(&ticket, &state)).into_response()),
        None => Err(ApiError::ModelNotFound(model.alias)),
    }
}

/// `DELETE /v1/models/{id}`: deletes a ticket and its file, never the base.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    model: NamedTicket,
) -> Result<Response, ApiError> {
    let condition = condition(&headers, None)?;
    if model.alias == state.base.manifest.name {
        let problem = "is the base, which cannot be deleted";
        return Err(ApiError::invalid("model", problem));
    }
    let response = json!({"id": &model.alias, "object": "model", "deleted": true});
    blocking(move || {
        let remove = |name: Name<'_>| state.registry.remove(name, &condition);
        model
            .take_away(&state, remove)
            .map_err(|error| match error {
                RegistryError::Unknown(id) => ApiError::ModelNotFound(id),
                error => error.into(),
            })
    })
    .await?;
    Ok(Json(response).into_response())
}
