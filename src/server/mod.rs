//! HTTP only: OpenAI's routes, the tickets' own, and operations.
//!
//! A request crosses `openai` (fields, checked once) → `generate` (sequences of the engine) →
//! `sse` or one JSON answer. Whatever goes wrong becomes an [`ApiError`], whose one table says
//! what the client sees. Dropping a response drops its sequences, which cancels them.

mod body;
mod error;
mod generate;
mod meter;
mod openai;
mod ops;
mod sampling;
mod sse;
mod tickets;

use std::any::Any;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::Level;

pub use error::ApiError;

use crate::engine::EngineHandle;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::text::Text;
use crate::ticket::{BaseManifest, Digest};

/// Uploads that are checked at once; others wait.
const CONCURRENT_UPLOADS: usize = 4;

/// Bounds on what clients may send.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Larger JSON bodies are refused.
    pub max_body_bytes: usize,
    /// Larger uploads are refused.
    pub max_ticket_bytes: u64,
    /// How long a client may pause while it sends a body.
    pub body_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 << 20,
            max_ticket_bytes: 1 << 30,
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// The base that is served.
#[derive(Clone, Debug)]
pub struct ServedBase {
    pub manifest: Arc<BaseManifest>,
    /// How its values are kept, but for those that are kept quantised: `f32`, `bf16`.
    pub dtype: String,
    /// Its weights are kept quantised, as its file has them.
    pub quantized: bool,
    /// Bytes that its parameters take.
    pub weight_bytes: usize,
    /// The digest of its resident parameters when they were loaded.
    pub loaded_digest: Digest,
}

/// All that the routes need.
pub struct AppState {
    pub engine: EngineHandle,
    pub registry: Arc<Registry>,
    pub text: Arc<Text>,
    pub base: ServedBase,
    pub metrics: Arc<Metrics>,
    pub options: ServerOptions,
    started: SystemTime,
    draining: AtomicBool,
    uploads: Semaphore,
}

impl AppState {
    /// The state of a server that starts now.
    pub fn new(
        engine: EngineHandle,
        registry: Arc<Registry>,
        text: Arc<Text>,
        base: ServedBase,
        metrics: Arc<Metrics>,
        options: ServerOptions,
    ) -> Self {
        Self {
            engine,
            registry,
            text,
            base,
            metrics,
            options,
            started: SystemTime::now(),
            draining: AtomicBool::new(false),
            uploads: Semaphore::new(CONCURRENT_UPLOADS),
        }
    }
}

/// All routes.
pub fn router(state: Arc<AppState>) -> Router {
    let span = DefaultMakeSpan::new().level(Level::INFO);
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let upload = post(tickets::upload).layer(DefaultBodyLimit::disable());
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
    // Asked every few seconds by machines: not worth a line in the log each.
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

/// What responses that are cut off have to send their last event.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a server's end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every response was sent.
    Complete,
    /// Time ran out; what still ran was cut off.
    TimedOut,
}

/// What a listener leads to: nothing yet, then a server's routes.
#[derive(Clone, Default)]
pub struct Door(Arc<OnceLock<(Arc<AppState>, Router)>>);

impl Door {
    /// Lets requests in. Once open, it stays open to the same server.
    pub fn open(&self, state: Arc<AppState>) {
        let routes = router(Arc::clone(&state));
        self.0.get_or_init(|| (state, routes));
    }

    fn state(&self) -> Option<&AppState> {
        self.0.get().map(|(state, _)| &**state)
    }

    /// Answers every request: with the routes, or with 503 before there are any.
    fn routes(self) -> Router {
        Router::new().fallback(async move |request: Request| match self.0.get() {
            Some((_, routes)) => match routes.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None => ops::starting(&request),
        })
    }
}

impl From<Arc<AppState>> for Door {
    fn from(state: Arc<AppState>) -> Self {
        let door = Self::default();
        door.open(state);
        door
    }
}

/// Serves until `shutdown`, then takes no more connections and waits for running responses, for
/// `drain` at most. Until `door` is opened, requests are told that the server starts.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    door: impl Into<Door>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> io::Result<Drained> {
    let door = door.into();
    // Tokens are small packets that must not wait for each other.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
    });
    let (stopping, stopped) = oneshot::channel();
    let signal = {
        let door = door.clone();
        async move {
            shutdown.await;
            if let Some(state) = door.state() {
                state.draining.store(true, Ordering::Release);
            }
            // Nobody listens when serving has failed already.
            let _ = stopping.send(());
        }
    };
    let serving = axum::serve(listener, door.clone().routes()).with_graceful_shutdown(signal);
    let mut serving = pin!(serving.into_future());
    let deadline = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = &mut serving => return served.map(|()| Drained::Complete),
        () = deadline => {}
    }
    // What still runs is told that it ends here, and has a moment to say so.
    if let Some(state) = door.state() {
        state.engine.shutdown();
    }
    match tokio::time::timeout(LAST_WORDS, serving).await {
        Ok(Err(error)) => Err(error),
        _ => Ok(Drained::TimedOut),
    }
}

/// Runs what may take longer than a millisecond off the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::Internal(error.to_string())))
}

async fn unknown_url(request: Request) -> ApiError {
    ApiError::UnknownUrl(route_of(&request))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(route_of(&request))
}

fn route_of(request: &Request) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let reason = format!("a panic: {}", text.unwrap_or("without a message"));
    ApiError::Internal(reason).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};

    async fn panics() {
        panic!("the secret is out");
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing() {
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
