//! Table of routes, and the layers around them.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::Level;

use super::error::ApiError;
use super::state::AppState;
use super::{openai, ops, tickets};

/// All routes. An unknown URL, a wrong method or a panic answers with an [`ApiError`], too.
pub fn router(state: Arc<AppState>) -> Router {
    let span = DefaultMakeSpan::new().level(Level::INFO);
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let upload = post(tickets::create).layer(DefaultBodyLimit::disable());
    let api = Router::new()
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::get))
        .route("/v1/tickets", upload.get(tickets::list))
        .route(
            "/v1/tickets/{name}",
            get(tickets::get).delete(tickets::delete),
        )
        .route("/v1/base", get(ops::base))
        .layer(RequestBodyTimeoutLayer::new(state.options.body_timeout))
        .layer(trace);
    // Probes and scrapers call these every few seconds; tracing them would flood the log.
    let ops = Router::new()
        .route("/health", get(ops::health))
        .route("/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics));
    api.merge(ops)
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state)
}

async fn unknown_url(request: Request) -> ApiError {
    ApiError::UnknownUrl(method_and_path(&request))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(method_and_path(&request))
}

fn method_and_path(request: &Request) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    ApiError::Internal(format!("a panic: {message}")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    async fn panics() {
        panic!("the secret is out");
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_hides_its_message() {
        let layer = CatchPanicLayer::custom(panicked);
        let router = Router::new().route("/", get(panics)).layer(layer);
        let request = Request::new(Body::empty());
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body = String::from_utf8_lossy(&body);
        assert!(
            body.contains("server_error") && !body.contains("secret"),
            "{body}"
        );
    }
}
