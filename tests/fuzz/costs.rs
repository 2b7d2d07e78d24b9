//! Memory that single hostile requests take, over all threads.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::text::Text;
use tower::ServiceExt as _;

use crate::counting::peak;
use crate::harness::turn;
use crate::support::tokenizer::{text, tokenizer};
use crate::support::{Server, run_engine};

const MIB: usize = 1 << 20;
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const MAX_BODY: usize = 8 * MIB;

/// A tokenizer that sets no bound on the bytes of a token, because it may drop spaces.
fn unbounded_text() -> Arc<Text> {
    let folder = TempDir::new().unwrap();
    let mut tokenizer = tokenizer();
    tokenizer["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": false});
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let text = Text::from_folder(folder.path()).unwrap();
    assert_eq!(text.max_bytes(1), None);
    Arc::new(text)
}

/// Posts a body; returns the status and the message and code of the error.
async fn post(server: &Server, path: &str, body: String) -> (StatusCode, String, String) {
    let request = Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .unwrap();
    let router = tombola::server::router(server.state.clone());
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    let of_error = |key: &str| answer["error"][key].as_str().unwrap_or_default().to_owned();
    (status, of_error("message"), of_error("code"))
}

/// Posts bodies at once; returns the answers, and the most bytes taken beside the bodies.
fn post_all(
    server: &Server,
    path: &str,
    bodies: Vec<String>,
) -> (Vec<(StatusCode, String, String)>, usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let post_all = || {
        let posts = bodies.into_iter().map(|body| post(server, path, body));
        runtime.block_on(join_all(posts))
    };
    peak(post_all)
}

fn prompt(bytes: usize) -> String {
    format!("{{\"prompt\":\"{}\"}}", "a".repeat(bytes))
}

fn chat(bytes: usize) -> String {
    let text = "a".repeat(bytes);
    format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}")
}

#[test]
fn prompts_longer_than_the_context_are_refused_before_they_are_tokenised() {
    let _turn = turn();
    let (server, _inbox) = Server::new(text(), 64, MAX_BODY);
    for (path, body) in [(COMPLETIONS, prompt as fn(usize) -> String), (CHAT, chat)] {
        let bodies = vec![body(MAX_BODY - 100); 8];
        let (answers, peak) = post_all(&server, path, bodies);
        for (status, message, code) in answers {
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert_eq!(code, "context_length_exceeded");
            assert!(message.contains("at most 448 bytes of text"), "{message}");
        }
        // Reading a body takes up to three times its size; tokenising it would take 300 times.
        assert!(peak < 8 * 5 * MAX_BODY, "{path}: {} MiB", peak / MIB);
    }
}

#[test]
fn truncation_tokenises_only_the_end_of_a_long_prompt() {
    let _turn = turn();
    let (server, inbox) = Server::new(text(), 64, MAX_BODY);
    run_engine(inbox);
    let long = "a".repeat(MAX_BODY / 2);
    let body = format!("{{\"prompt\":\"{long}bc\",\"truncate_prompt_tokens\":3}}");
    let (answers, peak) = post_all(&server, COMPLETIONS, vec![body]);
    assert_eq!(answers[0].0, StatusCode::OK);
    assert!(peak < 5 * MAX_BODY, "{} MiB", peak / MIB);
}

#[test]
fn long_prompts_at_once_take_the_memory_of_one() {
    /// More than half of what is tokenised at once.
    const BYTES: usize = 640 << 10;
    let _turn = turn();
    let (server, _inbox) = Server::new(unbounded_text(), 64, MAX_BODY);
    let measure = |requests: usize| {
        let (answers, peak) = post_all(&server, COMPLETIONS, vec![prompt(BYTES); requests]);
        for (status, _, code) in answers {
            let expected = (StatusCode::BAD_REQUEST, "context_length_exceeded");
            assert_eq!((status, code.as_str()), expected);
        }
        peak
    };
    let one = measure(1);
    let eight = measure(8);
    let bodies = 8 * 3 * BYTES;
    assert!(
        eight < one + one / 4 + bodies,
        "one took {} MiB, eight took {} MiB",
        one / MIB,
        eight / MIB
    );
}

#[test]
fn stops_beyond_their_bounds_are_refused_for_little_more_than_their_bytes() {
    let _turn = turn();
    let (server, _inbox) = Server::new(text(), 256, MAX_BODY);
    let strings = vec!["x".repeat(135_000); 60];
    let mut deep = String::new();
    write!(
        deep,
        "{{\"prompt\":\"a\",\"stop\":{}",
        "[".repeat(8_000_000)
    )
    .unwrap();
    let ids = "1,".repeat(4_000_000);
    let biases: Vec<_> = (0..400_000).map(|i| format!("\"{i}\":1")).collect();
    let bodies = [
        json!({"prompt": "a", "n": 128, "stop": strings}).to_string(),
        format!("{{\"prompt\":\"a\",\"n\":128,\"stop_token_ids\":[{ids}1]}}"),
        format!(
            "{{\"prompt\":\"a\",\"logit_bias\":{{{}}}}}",
            biases.join(",")
        ),
        format!("{{\"prompt\":[{}\"a\"]}}", "\"\",".repeat(2_000_000)),
        format!(
            "{{\"prompt\":\"a\",\"stop\":[{}\"a\"]}}",
            "\"a\",".repeat(1_900_000)
        ),
        deep,
    ];
    for body in bodies {
        let start: String = body.chars().take(60).collect();
        let (answers, peak) = post_all(&server, COMPLETIONS, vec![body]);
        assert_eq!(answers[0].0, StatusCode::BAD_REQUEST, "{start}");
        assert!(peak < 5 * MAX_BODY, "{start}: {} MiB", peak / MIB);
    }
}

#[test]
fn choices_share_stops_stop_tokens_and_biases() {
    let _turn = turn();
    let (server, _inbox) = Server::new(text(), 1024, MAX_BODY);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let biases: serde_json::Map<_, _> = (0..257).map(|i| (i.to_string(), json!(1))).collect();
    let measure = |n: usize| {
        let body = json!({
            "prompt": "a", "n": n, "stop": vec!["x".repeat(1024); 8],
            "stop_token_ids": vec![1; 1024], "logit_bias": biases,
        });
        let body = body.to_string();
        // The engine does not run, so that all choices stay as they were submitted.
        let wait = Duration::from_millis(300);
        let submit = || {
            runtime.block_on(async {
                tokio::time::timeout(wait, post(&server, COMPLETIONS, body)).await
            })
        };
        let (answer, peak) = peak(submit);
        assert!(answer.is_err(), "answered: {answer:?}");
        peak
    };
    measure(1); // What is made once.
    let (one, many) = (measure(1), measure(128));
    let each = many.saturating_sub(one) / 127;
    assert!(each < 8 << 10, "each choice takes {each} bytes");
}
