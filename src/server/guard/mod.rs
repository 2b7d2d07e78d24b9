//! The guard before each route: who calls, from where, and whether the route is theirs.

mod browsers;
mod cors;
mod media_type;
mod policy;

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::state::AppState;

pub use browsers::{BrowserRules, BrowserRulesError};
pub(super) use cors::cors;
pub use media_type::BodyKind;
pub use policy::{Access, AccessOptions, Rule};

/// State of the guard of one route.
#[derive(Clone)]
pub struct Guard {
    pub state: Arc<AppState>,
    pub rule: Rule,
    /// Whether the route is reached through a port that serves the operator's routes.
    pub on_admin_port: bool,
}

/// Middleware of a route: admits its caller and adds it to the request, or answers with the
/// refusal.
pub async fn guard(
    State(guard): State<Guard>,
    path: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let rule = guard.rule;
    let access = &guard.state.access;
    let identity = access.identify(request.headers());
    let mut caller = identity.as_ref().cloned().unwrap_or_default();
    caller.on_admin_port = guard.on_admin_port;
    caller.came_from(request.extensions());
    // Here, so that the audit line names it even if the caller is refused.
    if let Some((_, ticket)) = path.iter().flatten().next() {
        caller.trail.ticket(ticket);
    }
    if let Some(action) = rule.action {
        caller.begin(action);
    }
    let trail = caller.trail.clone();
    let response = match access.admit(&identity, &request, rule) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    trail.answered(&response);
    response
}
