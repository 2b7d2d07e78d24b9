//! What clients and probes see of an engine that hangs or fails.

use std::thread;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::echo::Server;

async fn health(server: &Server) -> (u16, Value) {
    let (status, body) = server.get("/health").await;
    (status.as_u16(), body)
}

/// Polls `/health` until its status is `wanted`, and returns its body.
async fn health_becomes(server: &Server, wanted: u16) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, body) = health(server).await;
        if status == wanted {
            return body;
        }
        assert!(Instant::now() < deadline, "still {status}: {body}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_engine_that_hangs_is_unhealthy_until_its_step_ends() {
    let (server, inbox) = Server::without_engine();
    let (end_step, step_ends) = std::sync::mpsc::channel::<()>();
    let engine = thread::spawn(move || {
        let request = inbox.recv();
        let _ = step_ends.recv();
        drop(request);
        inbox.recv()
    });
    assert_eq!(health(&server).await.0, 200);
    let stream = server.engine.submit(tombola::engine::Request {
        prompt: vec![1],
        ..Default::default()
    });
    let hangs = health_becomes(&server, 503).await;
    assert_eq!(hangs["error"]["code"], "engine_hangs", "{hangs}");
    let (status, ready) = server.get("/ready").await;
    assert_eq!(
        (status, &ready["status"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("engine_hangs"))
    );
    end_step.send(()).unwrap();
    health_becomes(&server, 200).await;
    drop(stream);
    server.engine.shutdown();
    engine.join().unwrap();
}

#[tokio::test]
async fn a_panic_of_the_engine_ends_streams_with_an_error_and_health_is_503() {
    let (server, inbox) = Server::without_engine();
    thread::spawn(move || {
        let _request = inbox.recv();
        panic!("as the test wants");
    });
    let body = json!({"prompt": "a", "stream": true});
    let events = server.stream("/v1/completions", body).await;
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "engine_stopped", "{last}");
    // The stream may end while the thread still unwinds.
    server.engine.ended().await;
    assert!(server.engine.has_failed());
    let (status, body) = health(&server).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("engine_stopped"))
    );
    let refused = server
        .refused("/v1/completions", json!({"prompt": "a"}))
        .await;
    assert_eq!((refused.0, &*refused.2), (503, "engine_stopped"));
}
