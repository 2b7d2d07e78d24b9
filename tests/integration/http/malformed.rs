//! Requests that violate HTTP: each is refused with a JSON error, and ends its connection.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::support::live::{LONG, Live, read_to_end};

#[tokio::test]
async fn ambiguous_http_is_refused_with_a_json_error() {
    let live = Live::start(LONG).await;
    let get = "GET /health HTTP/1.1\r\n";
    for (request, problem) in [
        (format!("{get}\r\n"), "`Host` is missing"),
        (
            format!("{get}Host: a\r\nHost: b\r\n\r\n"),
            "`Host` is given twice",
        ),
        (
            "GET /health HTTP/1.1\nHost: a\n\n".to_owned(),
            "carriage return",
        ),
        (format!("{get}Host: a\n\r\n"), "carriage return"),
        (
            format!("{get}Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            "`Content-Length` is given twice",
        ),
        (
            format!("{get}Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "exclude each other",
        ),
        (
            format!("{get}Host: a\r\nContent-Length: x\r\n\r\n"),
            "not a length",
        ),
        (
            format!("{get}Host: a\r\nContent-Length: {}\r\n\r\n", u64::MAX),
            "too large",
        ),
        (format!("{get}Host: a\r\nbad header\r\n\r\n"), "malformed"),
        ("\x16\x03\x01\r\n\r\n".to_owned(), "malformed"),
        ("PRI * HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), "version"),
    ] {
        let answer = live.answer(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
        assert!(answer.contains(r#""code":"bad_http""#), "{answer}");
        assert!(answer.contains(problem), "{request:?}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let malformed = live.server.metric("tombola_http_malformed_requests_total");
    assert_eq!(malformed.await, 11.0);
}

#[tokio::test]
async fn large_heads_are_refused() {
    let live = Live::start(LONG).await;
    let many = "X: a\r\n".repeat(101);
    for headers in [format!("X: {}\r\n", "a".repeat(20_000)), many] {
        let request = format!("GET /health HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let answer = live.answer(&request).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(answer.contains("headers_too_large"), "{answer}");
    }
}

#[tokio::test]
async fn a_malformed_head_that_arrives_in_pieces_is_refused_alike() {
    let live = Live::start(LONG).await;
    for (first, rest) in [
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nbad head",
            "er: 1\r\n\r\n",
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nbad",
            " header: 1\r\n\r\n",
        ),
        ("GET /health HT", "TQ/1.1\r\nHost: a\r\n\r\n"),
        ("\x16\x03", "\x01\r\n\r\n"),
    ] {
        let mut connection = live.send(first).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The first piece may have been refused already.
        let _ = connection.write_all(rest.as_bytes()).await;
        let answer = read_to_end(connection).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{first:?}: {answer}");
        assert!(answer.contains("bad_http"), "{first:?}: {answer}");
        assert!(answer.contains("x-request-id"), "{first:?}: {answer}");
    }
}

#[tokio::test]
async fn what_precedes_a_malformed_request_is_answered_first() {
    let live = Live::start(LONG).await;
    let good = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = live
        .answer(&format!("{good}{good}GET /health HTTP/1.1\r\n\r\n"))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
}

#[tokio::test]
async fn a_malformed_chunk_is_refused_by_the_route_that_reads_it() {
    let live = Live::start(LONG).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = live.answer(&format!("{head}2\r\n{{}}\n0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("end of a chunk"), "{answer}");
}

#[tokio::test]
async fn http_1_0_needs_no_host_and_ends_its_connection() {
    let live = Live::start(LONG).await;
    let answer = live.answer("GET /health HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_chunked_body_arrives_on_a_connection_that_goes_on() {
    let live = Live::start(LONG).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "7\r\n{\"promp\r\n8\r\nt\":\"ab\"}\r\n0\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = live
        .answer(&format!("{head}{body}{head}{body}{last}"))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
}
