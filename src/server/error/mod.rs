//! Errors sent to clients. [`table`] maps them to status, type and code.

mod conversions;
mod style;
mod table;

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::access::{RefusedKey, Scope, TenantLimit};

pub use style::ErrorStyle;

/// Reason why a request failed, in OpenAI's terms.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field is missing, malformed or out of range.
    #[error("{message}")]
    Invalid { message: String, param: String },
    /// A field of the OpenAI API that this server does not implement.
    #[error("`{param}` is not supported: {reason}")]
    Unsupported { param: String, reason: &'static str },
    /// A field that nobody knows, under `--strict-fields`.
    #[error("`{0}` is not a field of this request, and the server runs with --strict-fields")]
    UnknownField(String),
    /// The body is not a JSON object.
    #[error("the body is not a JSON object: {0}")]
    BadJson(String),
    /// The multipart form of an upload is malformed or breaks off.
    #[error("the form cannot be read: {0}")]
    BadForm(String),
    /// The client stopped sending the body, or sent it too slowly.
    #[error("the body cannot be read: {0}")]
    BadBody(String),
    /// The request violates HTTP.
    #[error("malformed HTTP: {0}")]
    BadHttp(String),
    /// The head of the request exceeds a limit.
    #[error("the headers are larger than the limit of {limit}")]
    HeadTooLarge { limit: String },
    /// The client sent a part of its request too slowly.
    #[error("the {0} of the request took too long to arrive")]
    RequestTimeout(&'static str),
    /// The prompt and its completion exceed the context. `completion` is absent if the prompt alone
    /// is too long.
    #[error("{}", context_message(*.limit, *.prompt, *.completion))]
    ContextLength {
        limit: usize,
        prompt: usize,
        completion: Option<usize>,
        param: &'static str,
    },
    /// The prompt's bytes alone exceed the context, so it was not encoded. `bytes` is absent if the
    /// prompt was not rendered to its end.
    #[error("{}", bytes_message(*.limit, *.max_bytes, *.bytes))]
    PromptBytes {
        limit: usize,
        max_bytes: usize,
        bytes: Option<usize>,
        param: &'static str,
    },
    /// No base and no ticket has this name.
    #[error("the model `{0}` does not exist")]
    ModelNotFound(String),
    /// No ticket has this name.
    #[error("there is no ticket `{0}`")]
    TicketNotFound(String),
    /// An upload names an existing ticket without `replace=true`.
    #[error("a ticket `{0}` exists already; pass `replace=true` to replace it")]
    TicketExists(String),
    /// A ticket's name differs from an existing one only in case.
    #[error("{0}")]
    NameTaken(String),
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("{0}")]
    PreconditionFailed(String),
    /// A tenant may not change a public ticket.
    #[error("{0}")]
    PublicTicket(String),
    /// A pinned ticket would leave other tickets too little memory.
    #[error("{0}")]
    PinsTooLarge(String),
    /// An uploaded ticket is malformed, or does not fit the base or the memory.
    #[error("the ticket is refused: {0}")]
    InvalidTicket(String),
    /// The logits under the ticket are not finite.
    #[error("the ticket breaks the model: its logits are not finite")]
    BrokenTicket,
    /// The logits of the base itself are not finite.
    #[error(
        "the base is broken: its logits are not finite; check its weights and its configuration"
    )]
    BrokenBase,
    /// A body or a ticket exceeds its limit.
    #[error("the {what} is larger than the limit of {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    /// The server has keys, and the request presents none that is accepted.
    #[error(transparent)]
    InvalidApiKey(Unidentified),
    /// The key lacks the scope that the route requires.
    #[error("the API key `{key}` lacks the scope `{scope}`")]
    Forbidden { key: String, scope: Scope },
    /// The request is addressed to a name that is not the server's.
    #[error(
        "requests to the host `{0}` are refused, since a web page can point any name here; send \
         an API key, or start the server with --allowed-host {0}"
    )]
    ForeignHost(String),
    /// The request was sent by a web page of another site.
    #[error(
        "requests from web pages of {0} are refused; start the server with --cors-origin to \
         accept them"
    )]
    ForeignOrigin(String),
    /// The route takes a body of another media type.
    #[error(
        "`Content-Type` must be {expected}, got `{got}`; with curl, pass {}",
        curl_hint(expected)
    )]
    UnsupportedMediaType { expected: &'static str, got: String },
    /// The body is compressed in a way that the route does not take.
    #[error("the `Content-Encoding` `{got}` is not supported here; send one of: {accepted}")]
    UnsupportedEncoding { got: String, accepted: &'static str },
    /// The tenant has as much in progress as its limits allow.
    #[error("this tenant is limited to {limit}; try again later")]
    TenantBusy {
        limit: TenantLimit,
        retry_after: u64,
    },
    /// The tenant owns as many tickets as its limits allow.
    #[error("this tenant is limited to {0}; delete a ticket first")]
    TenantStorage(TenantLimit),
    /// No route has this path.
    #[error("unknown URL: {0}")]
    UnknownUrl(String),
    /// The route does not have this method.
    #[error("the method is not allowed for this URL: {0}")]
    MethodNotAllowed(String),
    /// The engine holds its maximum number of requests.
    #[error("the queue is full; try again in {retry_after} s")]
    QueueFull { retry_after: u64 },
    /// The caller's account holds as many requests as it may at the moment.
    #[error("this tenant or ticket holds its share of the queue; try again in {retry_after} s")]
    ShareFull { retry_after: u64 },
    /// The client did not read its stream.
    #[error("the stream was ended because too many of its tokens were not read in time")]
    UnreadOutput,
    /// Too many uploads are in progress.
    #[error("too many uploads are in progress; try again in {retry_after} s")]
    UploadQueueFull { retry_after: u64 },
    /// Too many requests, or too many of the caller's account, wait for ticket memory.
    #[error("{reason}")]
    TicketLineFull { reason: String, retry_after: u64 },
    /// Leased tickets take up the memory budget.
    #[error("the memory budget for tickets is in use; try again later")]
    TicketMemoryFull,
    /// A ticket's file is not the one that was published.
    #[error("the file of ticket `{0}` was changed or removed outside the server; upload it again")]
    TicketFileChanged(String),
    /// The ticket folder has no room for an upload.
    #[error("the disk of the ticket folder is full: nothing was changed; make room and try again")]
    DiskFull,
    /// The ticket folder cannot be written.
    #[error("the ticket folder is read-only: tickets can be neither uploaded nor deleted")]
    FolderReadOnly,
    /// All connections are in use.
    #[error("the server has too many open connections; try again later")]
    TooManyConnections,
    /// Request bodies in progress take up the room for them.
    #[error("too many large requests arrive at once; try again later")]
    BodiesFull,
    /// Request bodies of this tenant take up its share of the room for them.
    #[error(
        "the large requests of this tenant, or of all callers without one, take up their share of \
         the room for them; try again later"
    )]
    BodiesShareFull,
    /// The server shuts down.
    #[error("the server is shutting down and accepts no new requests")]
    Draining,
    /// The base is not loaded yet.
    #[error("the server is still loading the base; try again later")]
    Starting,
    /// The engine is inside one step for longer than `--step-timeout`.
    #[error("the engine has been inside one step for {seconds} s, which --step-timeout forbids")]
    EngineHangs { seconds: u64 },
    /// The device has no memory for a step.
    #[error("the device ran out of memory in a step with this request; try again later")]
    OutOfMemory,
    /// A step failed.
    #[error("a step with this request failed; see the server log")]
    StepFailed,
    /// The constraint on the output cannot go on.
    #[error("the output was cut off: {0}")]
    Constraint(String),
    /// The engine's thread has ended, or the server shuts down.
    #[error("the engine has stopped")]
    EngineStopped,
    /// Any other failure: the reason is logged, never sent.
    #[error("internal error; see the server log")]
    Internal(String),
}

impl ApiError {
    /// An invalid field; the message is its name in backticks, then the problem.
    pub fn invalid(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("`{param}` {problem}");
        Self::Invalid { message, param }
    }

    /// OpenAI's error object, also sent as an event if a stream fails. Logs the reason of an
    /// internal error, which the object leaves out.
    pub fn body(&self) -> Value {
        if let Self::Internal(reason) = self {
            tracing::error!(%reason, "internal error");
        }
        let (_, kind, code) = self.table_row();
        json!({
            "error": {
                "message": self.to_string(),
                "type": kind,
                "param": self.param(),
                "code": code,
            }
        })
    }
}

/// The error that a response reports, among the response's extensions.
#[derive(Clone, Debug)]
pub struct ErrorReport {
    pub message: Arc<str>,
    pub code: Option<&'static str>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, code) = self.table_row();
        let mut response = (status, Json(self.body())).into_response();
        let message = self.to_string().into();
        let report = ErrorReport { message, code };
        response.extensions_mut().insert(report);
        if let Self::UnsupportedEncoding { accepted, .. } = &self {
            let accepted = HeaderValue::from_static(accepted);
            response
                .headers_mut()
                .insert(header::ACCEPT_ENCODING, accepted);
        }
        if let Self::InvalidApiKey(reason) = &self {
            let challenge = HeaderValue::from_static(reason.challenge());
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after() {
            let seconds = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// Why the caller of a request is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// The request presents no key.
    #[error(
        "this server needs an API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    )]
    NoKey,
    /// The header does not hold one key.
    #[error("the `Authorization` header is not `Bearer KEY`")]
    NotBearer,
    /// The other header does not hold one key.
    #[error("the `x-api-key` header does not hold one key")]
    NotOneKey,
    /// The key is not accepted.
    #[error(transparent)]
    Refused(#[from] RefusedKey),
}

impl Unidentified {
    /// Value of `WWW-Authenticate`.
    pub fn challenge(&self) -> &'static str {
        match self {
            Self::NoKey => r#"Bearer realm="tombola""#,
            Self::NotBearer | Self::NotOneKey => {
                r#"Bearer realm="tombola", error="invalid_request""#
            }
            Self::Refused(_) => r#"Bearer realm="tombola", error="invalid_token""#,
        }
    }
}

/// The flag of `curl` that sends this media type.
fn curl_hint(media_type: &str) -> &'static str {
    match media_type {
        "application/json" => "-H 'Content-Type: application/json'",
        _ => "-F for each field of the form",
    }
}

fn context_message(limit: usize, prompt: usize, completion: Option<usize>) -> String {
    let limit = format!("this model's maximum context length is {limit} tokens");
    match completion {
        Some(completion) => {
            let total = prompt.saturating_add(completion);
            format!(
                "{limit}, but {total} were requested ({prompt} in the prompt, {completion} in \
                 the completion)"
            )
        }
        None => format!(
            "{limit}, but the prompt has {prompt} tokens, which leaves no room for a completion"
        ),
    }
}

fn bytes_message(limit: usize, max_bytes: usize, bytes: Option<usize>) -> String {
    let found = bytes.map_or("more".to_owned(), |bytes| bytes.to_string());
    format!(
        "this model's maximum context length is {limit} tokens, which hold at most {max_bytes} \
         bytes of text, but the prompt has {found}"
    )
}
