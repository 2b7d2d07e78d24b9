//! Table of routes, and the layers around them. A route is in the table with what it requires of
//! its caller, or it does not exist.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::{Level, Span};

use super::error::{ApiError, ErrorStyle};
use super::front::Front;
use super::guard::{Access, BodyKind, Guard, Rule, cors, guard};
use super::request_id::RequestId;
use super::state::AppState;
use super::{about, adapters, openai, ops, tickets};
use crate::access::Scope;

/// Every route of the server.
fn table() -> Vec<Route> {
    use Access::{AnyKey, Open};
    use Scope::{Admin, Infer, Metrics, TicketsRead, TicketsWrite};
    vec![
        Route::post("/v1/completions", Infer, openai::completions::create).on(Port::Public),
        Route::post("/v1/chat/completions", Infer, openai::chat::create).on(Port::Public),
        Route::post("/v1/embeddings", Infer, openai::embeddings::create).on(Port::Public),
        Route::post("/tokenize", Infer, openai::tokens::tokenize).on(Port::Public),
        Route::post("/detokenize", Infer, openai::tokens::detokenize).on(Port::Public),
        Route::get("/tokenizer_info", Infer, openai::tokens::info).on(Port::Public),
        Route::get("/v1/models", Infer, openai::models::list),
        Route::get("/v1/models/{*id}", Infer, openai::models::get),
        Route::delete("/v1/models/{*id}", TicketsWrite, openai::models::delete).action("delete"),
        Route::post("/v1/load_lora_adapter", TicketsWrite, adapters::load).action("load"),
        Route::post("/v1/unload_lora_adapter", TicketsWrite, adapters::unload).action("unload"),
        Route::get("/v1/tickets", TicketsRead, tickets::list),
        Route::get("/v1/tickets/{name}", TicketsRead, tickets::get),
        Route::form("/v1/tickets", TicketsWrite, tickets::create).action("upload"),
        Route::delete("/v1/tickets/{name}", TicketsWrite, tickets::delete).action("delete"),
        Route::put("/v1/tickets/{name}/pin", Admin, tickets::pin).action("pin"),
        Route::delete("/v1/tickets/{name}/pin", Admin, tickets::unpin).action("unpin"),
        // `?verify=true` requires more; the handler sees to it.
        Route::get("/v1/base", AnyKey, ops::base),
        Route::get("/health", Open, ops::health).untraced(),
        Route::get("/ready", Open, ops::ready).untraced(),
        Route::get("/ping", Open, ops::health).untraced(),
        Route::new(
            Method::POST,
            "/ping",
            Open,
            BodyKind::Any,
            post(ops::health),
        )
        .untraced(),
        Route::get("/version", AnyKey, about::version),
        Route::get("/load", Metrics, about::load).untraced(),
        Route::get("/server_info", Admin, about::server_info).on(Port::Admin),
        Route::get("/metrics", Metrics, ops::metrics)
            .on(Port::Admin)
            .untraced(),
    ]
}

/// The ports that serve a route, if the operator's routes have a port of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The public one alone.
    Public,
    /// The operator's alone.
    Admin,
    /// Both.
    Both,
}

/// A route, its requirements, and its handler.
struct Route {
    facts: RouteFacts,
    rule: Rule,
    handler: MethodRouter<Arc<AppState>>,
    /// Whether the log tells of its requests. Probes and scrapers send one every few seconds.
    traced: bool,
    /// Shape of its errors.
    errors: ErrorStyle,
}

/// What a route is and requires.
#[derive(Clone, Debug)]
pub struct RouteFacts {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub port: Port,
}

impl Route {
    fn new(
        method: Method,
        path: &'static str,
        access: impl Into<Access>,
        body: BodyKind,
        handler: MethodRouter<Arc<AppState>>,
    ) -> Self {
        let access = access.into();
        Self {
            facts: RouteFacts {
                method,
                path,
                access,
                port: Port::Both,
            },
            rule: Rule {
                access,
                body,
                action: None,
            },
            handler,
            traced: true,
            errors: ErrorStyle::OpenAi,
        }
    }

    fn get<T: 'static>(
        path: &'static str,
        access: impl Into<Access>,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        Self::new(Method::GET, path, access, BodyKind::Any, get(handler))
    }

    /// A route whose body does not count.
    fn put<T: 'static>(
        path: &'static str,
        access: impl Into<Access>,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        Self::new(Method::PUT, path, access, BodyKind::Any, put(handler))
    }

    fn delete<T: 'static>(
        path: &'static str,
        access: impl Into<Access>,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        Self::new(Method::DELETE, path, access, BodyKind::Any, delete(handler))
    }

    /// A route that takes JSON.
    fn post<T: 'static>(
        path: &'static str,
        access: impl Into<Access>,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        Self::new(Method::POST, path, access, BodyKind::Json, post(handler))
    }

    /// A route that takes a multipart form of any size.
    fn form<T: 'static>(
        path: &'static str,
        access: impl Into<Access>,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        let handler = post(handler).layer(DefaultBodyLimit::disable());
        Self::new(Method::POST, path, access, BodyKind::Form, handler)
    }

    fn on(mut self, port: Port) -> Self {
        self.facts.port = port;
        self
    }

    fn untraced(mut self) -> Self {
        self.traced = false;
        self
    }

    /// Answers failed requests, on whichever layer they fail, in the style of another API. The
    /// style holds for every method of the path, which has no parameters.
    #[expect(dead_code, reason = "no route of another API yet")]
    fn errors(mut self, style: ErrorStyle) -> Self {
        self.errors = style;
        self
    }

    /// Writes an audit line for each request, under this name, and leaves the route to the
    /// operator's port.
    fn action(mut self, name: &'static str) -> Self {
        self.rule.action = Some(name);
        self.on(Port::Admin)
    }
}

/// What each route is and requires, in the order of the table.
pub fn route_facts() -> Vec<RouteFacts> {
    table().into_iter().map(|route| route.facts).collect()
}

/// Shape of the errors of a request to this path, which is absent from the table if the request
/// comes from a client of another API.
pub fn error_style(path: &str, headers: &HeaderMap) -> ErrorStyle {
    static STYLES: LazyLock<HashMap<&'static str, ErrorStyle>> = LazyLock::new(|| {
        let styled = table()
            .into_iter()
            .filter(|route| route.errors != ErrorStyle::OpenAi);
        styled
            .map(|route| (route.facts.path, route.errors))
            .collect()
    });
    let style = STYLES.get(path).copied();
    style.unwrap_or_else(|| ErrorStyle::guess(path, headers))
}

/// All routes, for a server with one port. An unknown URL, a wrong method or a panic answers with
/// an [`ApiError`], too.
pub fn router(state: Arc<AppState>) -> Router {
    build(state, &[Port::Public, Port::Admin, Port::Both])
}

/// The routes of the public port, if the operator's have a port of their own.
pub fn public_router(state: Arc<AppState>) -> Router {
    build(state, &[Port::Public, Port::Both])
}

/// The routes of the operator's port.
pub fn admin_router(state: Arc<AppState>) -> Router {
    build(state, &[Port::Admin, Port::Both])
}

fn build(state: Arc<AppState>, ports: &[Port]) -> Router {
    let on_admin_port = ports.contains(&Port::Admin);
    let (mut traced, mut untraced) = (Router::new(), Router::new());
    for route in table() {
        let RouteFacts { path, port, .. } = route.facts;
        if !ports.contains(&port) {
            continue;
        }
        let state = Arc::clone(&state);
        let rule = route.rule;
        let guarded = Guard {
            state,
            rule,
            on_admin_port,
        };
        let handler = route
            .handler
            .route_layer(from_fn_with_state(guarded, guard));
        let routes = if route.traced {
            &mut traced
        } else {
            &mut untraced
        };
        *routes = std::mem::take(routes).route(path, handler);
    }
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_response(DefaultOnResponse::new().level(Level::INFO));
    let routes = traced
        .layer(trace)
        .merge(untraced)
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&state), cors))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state);
    // Outside of the router, so that it sees each request before a route is chosen.
    Router::new().fallback_service(routes).layer(from_fn(front))
}

/// Middleware around all routes, for requests that do not come from a listener, which does the
/// same to the requests that it answers itself.
async fn front(mut request: Request, next: Next) -> Response {
    if request.extensions().get::<Front>().is_some() {
        return next.run(request).await;
    }
    let front = Front::begin(&mut request, error_style);
    front.finish(next.run(request).await)
}

/// Span of the log lines about a request.
fn span(request: &Request) -> Span {
    let id = request.extensions().get().map(RequestId::as_str);
    tracing::info_span!(
        "request",
        method = %request.method(),
        uri = %request.uri(),
        version = ?request.version(),
        id,
    )
}

async fn unknown_url(State(state): State<Arc<AppState>>, request: Request) -> ApiError {
    let refusal = without_route(&state, &request);
    refusal.unwrap_or_else(|| ApiError::UnknownUrl(method_and_path(&request)))
}

async fn method_not_allowed(State(state): State<Arc<AppState>>, request: Request) -> ApiError {
    let refusal = without_route(&state, &request);
    refusal.unwrap_or_else(|| ApiError::MethodNotAllowed(method_and_path(&request)))
}

/// The refusal of a request that has no route, if its caller may not even learn that.
fn without_route(state: &AppState, request: &Request) -> Option<ApiError> {
    let identity = state.access.identify(request.headers());
    state.access.admit(&identity, request, Rule::NO_ROUTE).err()
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
