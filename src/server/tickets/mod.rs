//! Ticket routes: upload, list, get, delete, pin.

mod wire;

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::blocking::blocking;
use super::caller::Caller;
use super::error::ApiError;
use super::named_ticket::NamedTicket;
use super::preconditions::condition;
use super::state::AppState;
use super::upload;
use crate::access::{Scope, Tenant, TenantError};
use crate::registry::{Name, Page};
use wire::TicketFacts;

/// Largest page of a list, and its default.
const MAX_PAGE: usize = 1000;

/// Refused files in one list.
const MAX_REFUSED: usize = 1000;

/// Query of `GET /v1/tickets`.
#[derive(Deserialize)]
pub struct ListQuery {
    status: Option<String>,
    limit: Option<usize>,
    /// The last name of the page before.
    after: Option<String>,
    /// The tenant whose tickets the operator wants to see.
    tenant: Option<String>,
}

/// `GET /v1/tickets`: a page of the tickets that the caller can name, by name; `?status=refused`
/// lists the files of the folder that are not served.
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    match query.status.as_deref() {
        None | Some("served") => {}
        Some("refused") => return Ok(refused(&state, &caller)),
        Some(_) => return Err(ApiError::invalid("status", "must be served or refused")),
    }
    let limit = query.limit.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let problem = format!("must be 1 to {MAX_PAGE}, got {limit}");
        return Err(ApiError::invalid("limit", problem));
    }
    let registry = &state.registry;
    let page = Page {
        after: query.after.as_deref().unwrap_or_default(),
        // One more, which says whether there are more.
        limit: limit + 1,
    };
    let mut tickets = match &query.tenant {
        None => registry.visible(caller.tenant.as_ref(), page),
        Some(name) => registry.owned(Some(&tenant(&caller, name)?), page),
    };
    let has_more = tickets.len() > limit;
    tickets.truncate(limit);
    let data: Vec<_> = tickets
        .iter()
        .map(|ticket| TicketFacts::new(ticket, registry, caller.tenant.as_ref()))
        .collect();
    let page = json!({"object": "list", "data": data, "has_more": has_more});
    Ok(Json(page).into_response())
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

/// The tenant that the operator asks about.
fn tenant(caller: &Caller, name: &str) -> Result<Tenant, ApiError> {
    caller.require(Scope::Admin)?;
    let malformed = |error: TenantError| ApiError::invalid("tenant", error);
    let tenant: Tenant = name.parse().map_err(malformed)?;
    if caller.tenant.as_ref().is_some_and(|own| *own != tenant) {
        let problem = "names another tenant";
        return Err(ApiError::invalid("tenant", problem));
    }
    Ok(tenant)
}

/// `PUT /v1/tickets/{name}/pin`: loads the ticket and keeps it in memory.
pub async fn pin(
    State(state): State<Arc<AppState>>,
    ticket: NamedTicket,
) -> Result<Response, ApiError> {
    // Loaded first, so that a pin is of a ticket that fits.
    let lease = state.registry.lease_in_turn(ticket.tenant(), &ticket.alias);
    let lease = lease.await;
    let lease = lease.inspect_err(|error| state.refusals.record_ticket(&state.metrics, error))?;
    blocking(move || {
        let pinned = state.registry.pin(ticket.name())?;
        ticket.caller.trail.done(pinned.digest());
        drop(lease);
        let facts = TicketFacts::new(&pinned, &state.registry, ticket.tenant());
        Ok(Json(facts).into_response())
    })
    .await
}

/// `DELETE /v1/tickets/{name}/pin`: lets the ticket be evicted again.
pub async fn unpin(
    State(state): State<Arc<AppState>>,
    ticket: NamedTicket,
) -> Result<Response, ApiError> {
    blocking(move || {
        let unpinned = state.registry.unpin(ticket.name())?;
        ticket.caller.trail.done(unpinned.digest());
        let facts = TicketFacts::new(&unpinned, &state.registry, ticket.tenant());
        Ok(Json(facts).into_response())
    })
    .await
}

/// `GET /v1/tickets/{name}`; the name may be an alias, `alias@digest` or a digest.
pub async fn get(
    State(state): State<Arc<AppState>>,
    ticket: NamedTicket,
) -> Result<Response, ApiError> {
    blocking(move || {
        let registry = &state.registry;
        let found = registry.get_with_training(ticket.tenant(), &ticket.alias)?;
        Ok(wire::whole(&state, found, ticket.tenant()))
    })
    .await
}

/// `DELETE /v1/tickets/{name}`. Running requests keep their lease.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    ticket: NamedTicket,
) -> Result<Response, ApiError> {
    let condition = condition(&headers, None)?;
    let response = json!({"object": "ticket", "name": &ticket.alias, "deleted": true});
    blocking(move || {
        let remove = |name: Name<'_>| state.registry.remove(name, &condition);
        Ok(ticket.take_away(&state, remove)?)
    })
    .await?;
    Ok(Json(response).into_response())
}

/// `POST /v1/tickets`: a multipart form with `name`, `file` and optionally `replace`, in any order.
/// The ticket belongs to the caller's tenant; without one it is public.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, ApiError> {
    // Malformed headers need no file; what they mean depends on the form.
    condition(&headers, None)?;
    let upload::Upload {
        name,
        replace,
        file,
        place,
    } = upload::receive(request, &state, &caller)
        .await
        .inspect_err(|error| state.refusals.record(&state.metrics, error))?;
    let condition = condition(&headers, replace)?;
    let state = Arc::clone(&state);
    let named = NamedTicket::new(caller, name);
    let whole = blocking(move || {
        // The work goes on if the client leaves, and so does its place.
        let _place = place;
        let metadata = file.as_file().metadata();
        let bytes = metadata.map_err(|error| ApiError::Internal(error.to_string()))?;
        let _stored = named.store(&state, bytes.len())?;
        let registry = &state.registry;
        let published = registry.publish_with_training(named.name(), file, &condition)?;
        let ticket = &published.generation;
        named.caller.trail.done(ticket.digest());
        tracing::info!(ticket = %ticket.name(), digest = %ticket.digest(), "published a ticket");
        Ok(wire::whole(&state, published, named.tenant()))
    })
    .await?;
    Ok((StatusCode::CREATED, whole).into_response())
}
