//! What all routes share: request ids, the shape of errors, trailing slashes.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tombola::server::{StartupGate, serve};

use crate::support::echo::{Server, json_request};
use crate::support::live::{LONG, Live, listener, options, read_to_end};

/// Value of a header in a raw response.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = headers.filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let value = values.next().map(|(_, value)| value);
    assert!(values.next().is_none(), "{name} twice: {answer}");
    value
}

#[tokio::test]
async fn every_response_has_the_id_of_its_request() {
    let live = Live::start(LONG).await;
    let body = json!({"prompt": "a", "stream": true}).to_string();
    let post = format!(
        "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nBODY",
        body.len()
    );
    for (request, body) in [
        ("GET /health HTTP/1.1\r\n", ""),
        ("GET /metrics HTTP/1.1\r\n", ""),
        ("GET /v1/models HTTP/1.1\r\n", ""),
        ("GET /nothing HTTP/1.1\r\n", ""),
        ("PUT /v1/models HTTP/1.1\r\n", ""),
        (
            "GET /v1/models HTTP/1.1\r\nOrigin: https://evil.example\r\n",
            "",
        ),
        (post.trim_end_matches("BODY"), &*body),
    ] {
        let send = async |id: &str| {
            let end = format!("Host: localhost\r\nConnection: close\r\n{id}\r\n{body}");
            live.answer(&format!("{request}{end}")).await
        };
        let own = send("X-Request-Id: req-7\r\n").await;
        assert_eq!(header(&own, "x-request-id"), Some("req-7"), "{own}");
        let made = send("X-Request-Id: not one id\r\n").await;
        let made = header(&made, "x-request-id").unwrap();
        assert!(made.len() == 32 && made != "not one id", "{made}");
    }
    let malformed = live.answer("GET / HTTP/1.1\r\n\r\n").await;
    assert!(malformed.starts_with("HTTP/1.1 400"), "{malformed}");
    assert!(header(&malformed, "x-request-id").is_some(), "{malformed}");
}

#[tokio::test]
async fn what_the_listener_refuses_has_the_id_and_the_shape_of_its_request() {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let forever = std::future::pending();
    let (listeners, options) = (vec![listener(socket)], options(Duration::ZERO));
    let serving = tokio::spawn(serve(listeners, StartupGate::default(), options, forever));
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   anthropic-version: 2023-06-01\r\nx-request-id: mine\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut connection, request.as_bytes())
        .await
        .unwrap();
    let answer = read_to_end(connection).await;
    assert_eq!(header(&answer, "x-request-id"), Some("mine"), "{answer}");
    assert_eq!(header(&answer, "request-id"), Some("mine"), "{answer}");
    assert_eq!(header(&answer, "retry-after"), Some("1"), "{answer}");
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["type"], "overloaded_error");
    assert_eq!(body["request_id"], "mine");
    serving.abort();
}

#[tokio::test]
async fn clients_of_other_apis_read_errors_of_any_layer_in_their_shape() {
    let server = Server::new();
    let anthropic = |mut request: Request<Body>| {
        let version = "2023-06-01".parse().unwrap();
        request.headers_mut().insert("anthropic-version", version);
        request
    };
    let large = json!({"prompt": "a".repeat(5000)}).to_string();
    let plain = Request::post("/v1/completions").body(Body::empty());
    for (request, status, kind) in [
        (
            json_request("/v1/messages/batches", "{}"),
            404,
            "not_found_error",
        ),
        (
            json_request("/v1/models", "{}"),
            405,
            "invalid_request_error",
        ),
        (plain.unwrap(), 415, "invalid_request_error"),
        (
            json_request("/v1/completions", large),
            413,
            "request_too_large",
        ),
        (
            json_request("/v1/completions", "{"),
            400,
            "invalid_request_error",
        ),
    ] {
        let (found, headers, body) = server.send(anthropic(request)).await;
        assert_eq!(found.as_u16(), status, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["type"], &body["error"]["type"]),
            (&json!("error"), &json!(kind))
        );
        let id = headers["x-request-id"].to_str().unwrap();
        assert_eq!(body["request_id"], id);
        assert_eq!(headers["request-id"], id);
    }
    let (status, answer) = server.post("/api/pull", json!({"model": "a"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(answer, json!({"error": "unknown URL: POST /api/pull"}));
}

#[tokio::test]
async fn a_trailing_slash_does_not_count() {
    let server = Server::new();
    for path in [
        "/v1/models/",
        "/v1/models/sql/",
        "/v1/tickets/sql/",
        "/v1/base/",
        "/health/",
    ] {
        let status = server.get(path).await.0;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    let page = server.get("/v1/tickets/?limit=1").await.1;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    server.ok("/v1/completions/", json!({"prompt": "a"})).await;
    for path in ["/v1/models//", "//v1/models", "/"] {
        assert_eq!(server.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}
