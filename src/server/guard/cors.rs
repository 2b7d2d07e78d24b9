//! Cross-origin resource sharing: the answers by which a browser lets the pages of allowed origins
//! use the server.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::browsers::shown;
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// Headers of responses that pages may read.
const EXPOSED: &str = "ETag, Retry-After, x-ignored-fields, x-request-id";

/// Middleware around all routes: answers the preflight requests of browsers, and lets the pages of
/// allowed origins read the answers.
pub async fn cors(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let allowed = state
        .access
        .browsers
        .allows_origin(origin.to_str().unwrap_or("?"));
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if request.method() == Method::OPTIONS && asked.is_some() {
        if !allowed {
            let origin = shown(&String::from_utf8_lossy(origin.as_bytes()));
            return ApiError::ForeignOrigin(origin).into_response();
        }
        preflight(request.headers())
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static(EXPOSED);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

/// Response to the preflight request of an allowed origin.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST, PUT, DELETE");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if asked.contains_key("access-control-request-private-network") {
        let yes = HeaderValue::from_static("true");
        headers.insert("access-control-allow-private-network", yes);
    }
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    response
}
