//! An HTTP server without a model: a byte-level tokenizer, the manifest of a tiny base, and an
//! engine that echoes each prompt.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tombola::engine::{
    Command, EngineHandle, EngineInbox, FinishReason, Limits, Output, OutputSender, SamplingParams,
    SequenceError, TokenLogprobs, channel,
};
use tombola::metrics::Metrics;
use tombola::model::TicketMemory;
use tombola::registry::{Registry, RegistryOptions};
use tombola::server::{AccessOptions, AppState, ServedBase, ServerOptions, router};
use tombola::text::Text;
use tombola::ticket::{
    BaseManifest, DeltaDtype, Deltas, Digest, Metadata, ParameterInfo, TensorDelta, Ticket,
};
use tower::ServiceExt as _;

use super::tokenizer::{END, text};

pub const CONTEXT: usize = 64;
pub const CAPACITY: usize = 8;
pub const MAX_TICKET_BYTES: u64 = 4096;
const PARAMETER: &str = "model.layers.0.mlp.up_proj.weight";

/// Tokens of each prompt that the engine reports as cached, if it has as many.
pub const CACHED: usize = 2;

/// Suffix of a prompt that is answered with `x` until the stream is dropped.
pub const ENDLESS: &str = "~";
/// Suffix of a prompt that gets no token.
pub const SILENT: &str = "=";
/// Suffix of a prompt whose engine stops after one token.
pub const DEADLY: &str = "!";
/// Suffix of a prompt that breaks the model at its second token.
pub const BREAKING: &str = "?";

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
        Self::of_size(text(), CAPACITY, 4096)
    }

    /// A server of this tokenizer, capacity and largest body, whose engine does not run yet.
    pub fn of_size(text: Arc<Text>, capacity: usize, max_body_bytes: usize) -> (Self, EngineInbox) {
        let tickets = TempDir::new().unwrap();
        fs::write(tickets.path().join("sql.safetensors"), ticket_file(1)).unwrap();
        let manifest = manifest();
        let options = RegistryOptions {
            max_ticket_bytes: MAX_TICKET_BYTES,
            memory_budget: 1 << 20,
            ticket_memory: TicketMemory::without_layouts(),
            ..RegistryOptions::default()
        };
        let opened = Registry::open(tickets.path(), None, manifest.clone(), options).unwrap();
        assert!(opened.refused.is_empty());
        let limits = Limits {
            max_model_len: CONTEXT,
            vocab_size: END as usize + 1,
            max_logprobs: 5,
        };
        let (engine, inbox) = channel(limits, capacity);
        let base = ServedBase {
            manifest,
            dtype: "f32".to_owned(),
            quantized: false,
            weight_bytes: 256,
            loaded_digest: Digest::of(b"loaded"),
        };
        let options = ServerOptions {
            max_body_bytes,
            max_ticket_bytes: MAX_TICKET_BYTES,
            upload_spool_bytes: 64 * MAX_TICKET_BYTES,
            step_timeout: Some(Duration::from_millis(200)),
            ..ServerOptions::default()
        };
        let registry = Arc::new(opened.registry);
        let metrics = Arc::new(Metrics::new(CONTEXT).unwrap());
        let state = AppState::new(engine.clone(), registry, text, base, metrics, options);
        let server = Self {
            state: Arc::new(state),
            engine,
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

fn run(inbox: &EngineInbox, seen: &Arc<Seen>) {
    while let Some(command) = inbox.recv() {
        match command {
            Command::Submit {
                request, outputs, ..
            } => {
                let ticket = request.ticket.as_ref();
                seen.requests.lock().unwrap().push(SeenRequest {
                    params: request.params.clone(),
                    ticket: ticket.map(|t| (t.alias().to_owned(), t.ticket().digest())),
                });
                let seen = seen.clone();
                thread::spawn(move || echo(&request.prompt, &request.params, &outputs, &seen));
            }
            Command::BaseDigest(answer) => {
                let _ = answer.send(Digest::of(b"loaded"));
            }
            Command::Shutdown => return,
        }
    }
}

/// Answers with the prompt, or as its last byte says.
fn echo(prompt: &[u32], params: &SamplingParams, outputs: &OutputSender, seen: &Seen) {
    let ends_with = |mark: &str| prompt.last() == Some(&u32::from(mark.as_bytes()[0]));
    let cancelled = || {
        seen.cancelled.fetch_add(1, Ordering::SeqCst);
    };
    if ends_with(SILENT) {
        while !outputs.is_closed() {
            thread::sleep(Duration::from_millis(1));
        }
        return cancelled();
    }
    let endless = ends_with(ENDLESS);
    let answer: Box<dyn Iterator<Item = u32>> = if endless {
        Box::new(std::iter::repeat(u32::from(b'x')))
    } else {
        Box::new(prompt.iter().copied().chain([END]))
    };
    for (i, token) in answer.enumerate() {
        if ends_with(DEADLY) && i == 1 {
            return;
        }
        if ends_with(BREAKING) && i == 1 {
            // This fails if the client has disconnected.
            let _ = outputs.send(Err(SequenceError::NotFinite));
            return;
        }
        let stop = token == END || params.stop_token_ids.contains(&token);
        let length = i + 1 == params.max_tokens && !endless;
        let finish = match (stop, length) {
            (true, _) => Some(FinishReason::Stop),
            (_, true) => Some(FinishReason::Length),
            _ => None,
        };
        let alternative = |k: usize| match k {
            0 => (token, -0.5),
            k => (u32::from(b'a') + k as u32, f32::NEG_INFINITY),
        };
        let logprobs = params.logprobs.map(|k| TokenLogprobs {
            chosen: -0.5,
            top: (0..k).map(alternative).collect(),
        });
        let output = Output {
            token,
            logprobs,
            finish,
            prompt_logprobs: None,
            cached_tokens: (i == 0).then_some(CACHED.min(prompt.len() - 1)),
        };
        if outputs.send(Ok(output)).is_err() {
            return cancelled();
        }
        if finish.is_some() {
            return;
        }
        if endless {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn manifest() -> Arc<BaseManifest> {
    let parameter = ParameterInfo {
        shape: vec![8, 8],
        adaptable: true,
    };
    Arc::new(BaseManifest {
        name: "tiny".to_owned(),
        fingerprint: Digest::of(b"tiny"),
        parameters: BTreeMap::from([(PARAMETER.to_owned(), parameter)]),
    })
}

/// A valid ticket for the tiny base; its content depends on the seed.
pub fn ticket_file(seed: u8) -> Vec<u8> {
    let deltas = Deltas::from_f32(vec![f32::from(seed) + 1.0; 4], DeltaDtype::F32);
    let delta = TensorDelta::from_flat([8, 8], &[0, 9, 18, 27], deltas).unwrap();
    let mut metadata = Metadata::new("any", &manifest(), 4);
    metadata.license = Some("CC-BY-4.0".to_owned());
    Ticket::encode(&metadata, &BTreeMap::from([(PARAMETER.to_owned(), delta)])).unwrap()
}
