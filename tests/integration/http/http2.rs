//! HTTP/2: by prior knowledge and by ALPN, under the limits of HTTP/1.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tombola::server::{Drained, ListenOptions};

use crate::support::echo::{ENDLESS, SILENT};
use crate::support::h2::{Client, GOAWAY, HEADERS, RST_STREAM};
use crate::support::live::{LONG, Live, options};

const WINDOW: u32 = 1 << 20;
const COMPLETIONS: &str = "/v1/completions";

async fn connect(live: &Live, window: u32) -> Client<TcpStream> {
    let socket = TcpStream::connect(live.address).await.unwrap();
    Client::begin(socket, window).await
}

fn prompt(prompt: &str) -> String {
    json!({"prompt": prompt}).to_string()
}

#[tokio::test]
async fn requests_over_http2_are_answered_side_by_side() {
    let live = Live::start(LONG).await;
    let mut client = connect(&live, WINDOW).await;
    let silent = client.request("POST", COMPLETIONS, &prompt(SILENT)).await;
    let models = client.request("GET", "/v1/models/", "").await;
    let (status, body) = client.response(models).await;
    assert!(status == 200 && body.contains("tiny"), "{status}: {body}");
    let whole = client.request("POST", COMPLETIONS, &prompt("ab")).await;
    let (status, body) = client.response(whole).await;
    assert!(
        status == 200 && body.contains("\"text\""),
        "{status}: {body}"
    );
    let stream = json!({"prompt": "ab", "stream": true}).to_string();
    let stream = client.request("POST", COMPLETIONS, &stream).await;
    assert!(
        client
            .response(stream)
            .await
            .1
            .ends_with("data: [DONE]\n\n")
    );
    let nothing = client.request("GET", "/nothing", "").await;
    assert_eq!(client.response(nothing).await.0, 404);
    // A reset stream is cancelled, and so are those of a connection that ends.
    client
        .send(RST_STREAM, 0, silent, &8u32.to_be_bytes())
        .await;
    live.server.wait_for_cancelled(1).await;
    client.request("POST", COMPLETIONS, &prompt(SILENT)).await;
    live.wait_for_requests(4).await;
    drop(client);
    live.server.wait_for_cancelled(2).await;
}

#[tokio::test]
async fn curl_speaks_http2_without_tls() {
    let live = Live::start(LONG).await;
    let url = format!("http://{}/v1/models", live.address);
    let curl = tokio::task::spawn_blocking(move || {
        let mut curl = Command::new("curl");
        let arguments = [
            "-sS",
            "--http2-prior-knowledge",
            "-w",
            "%{http_version} %{http_code}",
        ];
        curl.args(arguments).arg(url).output()
    });
    // Where there is no curl with HTTP/2, the other tests stand alone.
    let Ok(output) = curl.await.unwrap() else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("HTTP/2") || said.contains("unsupported") || said.contains("not support") {
        return;
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.ends_with("2 200"), "{answer} {said}");
}

#[tokio::test]
async fn exchanges_beside_the_first_count_as_connections() {
    let live = Live::with(options(LONG), 2, None).await;
    let mut client = connect(&live, WINDOW).await;
    for _ in 0..2 {
        client.request("POST", COMPLETIONS, &prompt(SILENT)).await;
    }
    live.wait_for_requests(2).await;
    let refused = client.request("GET", "/v1/models", "").await;
    let body = client.response(refused).await.1;
    assert!(body.contains("too_many_connections"), "{body}");
    client.send(RST_STREAM, 0, 1, &8u32.to_be_bytes()).await;
    live.server.wait_for_cancelled(1).await;
    let models = client.request("GET", "/v1/models", "").await;
    assert_eq!(client.response(models).await.0, 200);
}

#[tokio::test]
async fn an_idle_connection_ends_after_its_time_and_says_goodbye() {
    let brief = Duration::from_millis(200);
    for (keep_alive, head_timeout) in [(brief, LONG), (LONG, brief)] {
        let options = ListenOptions {
            keep_alive,
            head_timeout,
            ..options(LONG)
        };
        let live = Live::with(options, 64, None).await;
        let mut client = connect(&live, WINDOW).await;
        if head_timeout == LONG {
            let health = client.request("GET", "/health", "").await;
            assert_eq!(client.response(health).await.0, 200);
        }
        let mut kinds = Vec::new();
        let ending = async {
            while let Some(frame) = client.frame().await {
                kinds.push(frame.kind);
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(10), ending).await;
        ended.expect("the connection ends");
        assert!(
            !kinds.is_empty() && kinds.iter().all(|&kind| kind == GOAWAY),
            "{kinds:?}"
        );
    }
}

#[tokio::test]
async fn a_body_that_stops_is_not_waited_for() {
    let live = Live::start(LONG).await;
    let mut client = connect(&live, WINDOW).await;
    let json = [
        ("content-type", "application/json"),
        ("content-length", "10"),
    ];
    let stream = client.head("POST", COMPLETIONS, &json).await;
    let body = client.response(stream).await.1;
    assert!(body.contains("request_timeout"), "{body}");
    let series = r#"tombola_http_client_timeouts_total{kind="body"}"#;
    assert_eq!(live.server.metric(series).await, 1.0);
}

#[tokio::test]
async fn a_response_that_is_not_read_is_reset_and_its_neighbours_go_on() {
    let options = ListenOptions {
        write_timeout: Duration::from_millis(300),
        ..options(LONG)
    };
    let live = Live::with(options, 64, None).await;
    let mut client = connect(&live, 0).await;
    let body = json!({"prompt": ENDLESS, "stream": true}).to_string();
    let unread = client.request("POST", COMPLETIONS, &body).await;
    live.server.wait_for_cancelled(1).await;
    let reset = loop {
        let frame = client.frame().await.expect("the connection goes on");
        if frame.kind == RST_STREAM {
            break frame;
        }
        assert_eq!((frame.kind, frame.stream), (HEADERS, unread));
    };
    assert_eq!(reset.stream, unread);
    let health = client.head("HEAD", "/health", &[]).await;
    let frame = client.frame().await.expect("the connection goes on");
    assert_eq!((frame.kind, frame.stream), (HEADERS, health));
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_ends_idle_connections() {
    let live = Live::start(LONG).await;
    let mut idle = connect(&live, WINDOW).await;
    let health = idle.request("GET", "/health", "").await;
    assert_eq!(idle.response(health).await.0, 200);
    let mut client = connect(&live, WINDOW).await;
    let body = json!({"prompt": ENDLESS, "stop": "x".repeat(100), "stream": true}).to_string();
    let stream = client.request("POST", COMPLETIONS, &body).await;
    live.wait_for_requests(1).await;
    live.stop.send(()).unwrap();
    let body = client.response(stream).await.1;
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    // The client answers the server's last ping, or is not waited for.
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
}

#[tokio::test]
async fn heads_are_bounded_as_in_http1() {
    let live = Live::start(LONG).await;
    let mut client = connect(&live, WINDOW).await;
    let value = "a".repeat(200);
    let many = vec![("x", "a"); 101];
    let large = vec![("x", &*value); 90];
    for (headers, limit) in [(many, "100 headers"), (large, "16384 bytes")] {
        let stream = client.head("POST", COMPLETIONS, &headers).await;
        client.send(0, 1, stream, b"").await;
        let body = client.response(stream).await.1;
        assert!(
            body.contains("headers_too_large") && body.contains(limit),
            "{body}"
        );
    }
}
