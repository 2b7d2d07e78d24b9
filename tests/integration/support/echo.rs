//! An HTTP server without a model, whose engine echoes each prompt, and requests to it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tombola::engine::{self, EngineHandle, EngineInbox, SamplingParams};
use tombola::server::{AccessOptions, AppState, router};
use tombola::text::Text;
use tombola::ticket::Digest;
use tower::ServiceExt as _;

use super::bare_state::bare_state;
use super::echo_engine::{Observer, run};
use super::tokenizer::text;

pub use super::bare_state::{CONTEXT, HIDDEN, MAX_TICKET_BYTES, ticket_file};
pub use super::echo_engine::{BREAKING, CACHED, DEADLY, ENDLESS, SILENT};

pub const CAPACITY: usize = 8;

/// The requests that the engine received, and the number of cancelled sequences.
#[derive(Default)]
pub struct Seen {
    pub requests: Mutex<Vec<SeenRequest>>,
    pub cancelled: AtomicUsize,
}

#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub params: SamplingParams,
    pub ticket: Option<(String, Digest)>,
    pub scored: Vec<Range<usize>>,
    pub scored_top: usize,
}

impl Observer for Arc<Seen> {
    fn received(&self, request: &engine::Request) {
        let ticket = request.ticket.as_ref();
        self.requests.lock().unwrap().push(SeenRequest {
            params: request.params.clone(),
            ticket: ticket.map(|t| (t.alias().to_owned(), t.ticket().digest())),
            scored: request.scored.clone(),
            scored_top: request.scored_top,
        });
    }

    fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

pub struct Server {
    pub state: Arc<AppState>,
    pub engine: EngineHandle,
    pub seen: Arc<Seen>,
    pub tickets: TempDir,
}

impl Server {
    /// A server with a running engine.
    pub fn new() -> Self {
        let (server, inbox) = Self::without_engine();
        server.run_engine(inbox);
        server
    }

    /// A server with a running engine that does not accept everyone.
    pub fn with_access(access: AccessOptions) -> Self {
        let (server, inbox) = Self::without_engine();
        let state = Arc::into_inner(server.state).expect("no other owner");
        let state = Arc::new(state.with_access(access));
        let server = Self { state, ..server };
        server.run_engine(inbox);
        server
    }

    /// A server whose engine does not run yet.
    pub fn without_engine() -> (Self, EngineInbox) {
        Self::with_text(text())
    }

    /// A server with this tokenizer whose engine does not run yet.
    pub fn with_text(text: Arc<Text>) -> (Self, EngineInbox) {
        let tickets = TempDir::new().unwrap();
        let (state, inbox) = bare_state(tickets.path(), text, CAPACITY, 4096);
        let server = Self {
            engine: state.engine.clone(),
            state: Arc::new(state),
            seen: Arc::default(),
            tickets,
        };
        (server, inbox)
    }

    pub fn run_engine(&self, inbox: EngineInbox) {
        let seen = self.seen.clone();
        thread::spawn(move || run(&inbox, &seen));
    }

    pub async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let response = router(self.state.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        (parts.status, parts.headers, body)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (status, _, body) = self.send(request).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = json_request(path, body.to_string());
        let (status, _, body) = self.send(request).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Posts a request that has to succeed.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// Posts a request that has to be refused; returns the status, `param` and `code`.
    pub async fn refused(&self, path: &str, body: Value) -> (u16, String, String) {
        let (status, answer) = self.post(path, body).await;
        refusal(status, &answer)
    }

    /// The chunks of a stream, without the `[DONE]` that ends it.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let request = json_request(path, body.to_string());
        let (status, headers, body) = self.send(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(headers["content-type"], "text/event-stream");
        let events: Vec<_> = body
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .collect();
        let data: Vec<_> = events
            .iter()
            .map(|e| e.strip_prefix("data: ").unwrap())
            .collect();
        let (&done, chunks) = data.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        chunks
            .iter()
            .map(|chunk| serde_json::from_str(chunk).unwrap())
            .collect()
    }

    pub async fn metric(&self, series: &str) -> f64 {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let (_, _, text) = self.send(request).await;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is missing"))
            .parse()
            .unwrap()
    }

    pub async fn wait_for_cancelled(&self, sequences: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.seen.cancelled.load(Ordering::SeqCst) < sequences {
            assert!(Instant::now() < deadline, "nothing was cancelled");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn last_request(&self) -> SeenRequest {
        self.seen.requests.lock().unwrap().last().unwrap().clone()
    }
}

/// A request that posts `body` as JSON.
pub fn json_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(body.into()).unwrap()
}

/// The status, `param` and `code` of an answer, which has to be OpenAI's error object.
pub fn refusal(status: StatusCode, answer: &Value) -> (u16, String, String) {
    let error = answer["error"]
        .as_object()
        .unwrap_or_else(|| panic!("not an error: {answer}"));
    let keys: Vec<_> = error.keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (status.as_u16(), text("param"), text("code"))
}
