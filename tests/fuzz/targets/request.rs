//! Request bodies of both completion endpoints, through the server's router.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::harness::{Target, fuzz, outcome};
use crate::support::tokenizer::text;
use crate::support::{Server, run_engine};

/// Time for an answer: some prompts make the engine of the test never end.
const PATIENCE: Duration = Duration::from_millis(50);

/// Posts a body, and returns the status and what kind of answer came.
async fn post(server: &Server, path: &str, body: &[u8]) -> String {
    let request = Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_vec()))
        .unwrap();
    let answer = async {
        let router = tombola::server::router(server.state.clone());
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, bytes)
    };
    let Ok((status, bytes)) = tokio::time::timeout(PATIENCE, answer).await else {
        return "endless".to_owned();
    };
    if status.is_success() {
        return status.to_string();
    }
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    let error = &answer["error"];
    let message = error["message"].as_str().expect("a message");
    // The engine of the test stops or breaks at the end of some prompts, and its queue fills up.
    let code = error["code"].as_str().unwrap_or("none");
    let expected = matches!(
        code,
        "engine_stopped" | "broken_base" | "broken_ticket" | "queue_full"
    );
    let refused = status.is_client_error() && status != StatusCode::UNPROCESSABLE_ENTITY;
    assert!(refused || expected, "{status}: {answer}");
    assert!(message.chars().count() < 1000, "{message}");
    format!("{code} {} {}", error["param"], outcome(message))
}

#[test]
fn request_bodies() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (server, inbox) = Server::new(text(), 8, 4096);
    run_engine(inbox);
    let mut run = |input: &[u8]| {
        runtime.block_on(async {
            let completion = post(&server, "/v1/completions", input).await;
            let chat = post(&server, "/v1/chat/completions", input).await;
            format!("{completion} {chat}")
        })
    };
    fuzz(Target {
        name: "request",
        dictionary: &[
            b"\"stop\":",
            b"\"stop_token_ids\":",
            b"\"logit_bias\":",
            b"\"messages\":",
            b"\"prompt\":",
            b"\"max_tokens\":",
            b"\"n\":",
            b"\"role\":",
            b"\"content\":",
            b"null",
            b"true",
            b"1e400",
            b"-0",
            b"1e-45",
            b"-9223372036854775809",
            b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
            b"{\"a\":{\"a\":{\"a\":{\"a\":",
            b"\\ud800",
            b"\\u0000",
            b"\xed\xa0\x80",
            b"\"a\",\"a\",\"a\",\"a\",",
            b"1,1,1,1,1,1,1,1,",
        ],
        memory: 8 << 20,
        memory_per_byte: 2000,
        run: &mut run,
    });
}
