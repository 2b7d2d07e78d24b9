//! Behaviour that needs a real connection: disconnects, the drain, incomplete bodies.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tombola::server::{Drained, StartupGate, serve};

use crate::support::echo::{ENDLESS, SILENT, Server};
use crate::support::live::{LONG, Live, listener, options, read_to_end, read_until};

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_it() {
    let live = Live::start(LONG).await;
    let body = json!({"prompt": ENDLESS, "n": 2, "stream": true});
    let mut connection = live.post(&body).await;
    let head = read_until(&mut connection, "data: ").await;
    assert!(head.contains("text/event-stream"));
    drop(connection);
    live.server.wait_for_cancelled(2).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_too() {
    let live = Live::start(LONG).await;
    for stream in [false, true] {
        let connection = live
            .post(&json!({"prompt": SILENT, "stream": stream}))
            .await;
        live.wait_for_requests(1 + usize::from(stream)).await;
        drop(connection);
        live.server
            .wait_for_cancelled(1 + usize::from(stream))
            .await;
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_answer() {
    let live = Live::start(LONG).await;
    for (stream, end) in [(false, "\"usage\""), (true, "data: [DONE]")] {
        // Ends only by the stop string, after 100 tokens of 2 ms.
        let body = json!({"prompt": ENDLESS, "stop": "x".repeat(100), "stream": stream});
        let mut connection = live.post(&body).await;
        connection.shutdown().await.unwrap();
        let answer = read_to_end(connection).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(end), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_and_then_leaves_cancels() {
    let live = Live::start(LONG).await;
    let mut connection = live.post(&json!({"prompt": SILENT})).await;
    connection.shutdown().await.unwrap();
    let interim = read_until(&mut connection, "\r\n\r\n").await;
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    drop(connection);
    live.server.wait_for_cancelled(1).await;
}

#[tokio::test]
async fn a_client_that_leaves_between_events_cancels() {
    let live = Live::start(LONG).await;
    let body = json!({"prompt": SILENT, "stream": true});
    let mut connection = live.post(&body).await;
    read_until(&mut connection, "text/event-stream").await;
    live.wait_for_requests(1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Nothing is left to be read, so the system sends no reset of its own.
    let mut rest = [0; 4096];
    while connection.try_read(&mut rest).is_ok_and(|read| read > 0) {}
    drop(connection);
    live.server.wait_for_cancelled(1).await;
}

#[tokio::test]
async fn a_drain_waits_for_running_requests_and_accepts_no_more() {
    let live = Live::start(LONG).await;
    // Ends only by the stop string, after 100 tokens of 2 ms.
    let body = json!({"prompt": ENDLESS, "stop": "x".repeat(100), "stream": true});
    let mut connection = live.post(&body).await;
    live.wait_for_requests(1).await;
    live.stop.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(live.address).await.is_ok() {
        assert!(
            Instant::now() < deadline,
            "new connections are still accepted"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (status, body) = live.server.get("/ready").await;
    assert_eq!(
        (status.as_u16(), &body["status"]),
        (503, &json!("draining"))
    );
    read_until(&mut connection, "data: [DONE]").await;
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_the_drain() {
    let live = Live::start(LONG).await;
    let mut connection = live.post(&json!({"prompt": "a"})).await;
    read_until(&mut connection, "}}").await;
    live.stop.send(()).unwrap();
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let live = Live::start(Duration::from_millis(50)).await;
    let connection = live.post(&json!({"prompt": SILENT})).await;
    live.wait_for_requests(1).await;
    live.stop.send(()).unwrap();
    assert_eq!(live.serving.await.unwrap(), Drained::TimedOut);
    drop(connection);
}

#[tokio::test]
async fn an_interrupted_upload_leaves_no_file() {
    let live = Live::start(LONG).await;
    let mut connection = TcpStream::connect(live.address).await.unwrap();
    let head = "POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000\r\n\
                Content-Type: multipart/form-data; boundary=LINE\r\n\r\n\
                --LINE\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc";
    connection.write_all(head.as_bytes()).await.unwrap();
    let files = || {
        let entries = std::fs::read_dir(live.server.tickets.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let own = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".tombola");
        names.filter(|name| !own(name)).count()
    };
    let wait_for = async |expected: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while files() != expected {
            assert!(
                Instant::now() < deadline,
                "{} files, expected {expected}",
                files()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // The published ticket and the upload in progress.
    wait_for(2).await;
    drop(connection);
    wait_for(1).await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_why() {
    let live = Live::start(LONG).await;
    let mut connection = live.post(&json!({"prompt": "a".repeat(8 << 20)})).await;
    let answer = read_until(&mut connection, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_not_waited_for() {
    let live = Live::start(LONG).await;
    let mut connection = TcpStream::connect(live.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{";
    connection.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut connection, "request_timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// The status and the whole response of a request to `path`, on a new connection.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn before_the_base_is_loaded_the_server_says_so() {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let gate = StartupGate::default();
    let forever = std::future::pending();
    let (listeners, options) = (vec![listener(socket)], options(Duration::ZERO));
    let serving = tokio::spawn(serve(listeners, gate.clone(), options, forever));
    assert_eq!(get(address, "/health").await.0, 200);
    let (status, answer) = get(address, "/ready").await;
    assert!(status == 503 && answer.contains("starting"), "{answer}");
    let (status, answer) = get(address, "/v1/models").await;
    assert!(
        status == 503 && answer.contains(r#""code":"starting""#),
        "{answer}"
    );
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    // The gauge includes connections that are older than it, and forgets them when they end.
    let older = TcpStream::connect(address).await.unwrap();
    assert_eq!(get(address, "/health").await.0, 200);
    let server = Server::new();
    gate.open(server.state.clone());
    assert_eq!(get(address, "/v1/models").await.0, 200);
    let gauge = async || server.metric("tombola_http_connections").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while gauge().await != 1.0 {
        assert!(Instant::now() < deadline, "{} are open", gauge().await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(older);
    while gauge().await != 0.0 {
        assert!(Instant::now() < deadline, "{} are open", gauge().await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    serving.abort();
}

#[tokio::test]
async fn a_client_that_sends_its_whole_body_first_still_learns_why_it_is_refused() {
    const SENT: usize = 4 << 20;
    let live = Live::start(LONG).await;
    for (request, status) in [
        ("POST /v1/nothing", 404),
        ("PUT /v1/models", 405),
        ("POST /v1/tickets", 415),
    ] {
        let head =
            format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SENT}\r\n\r\n");
        let mut connection = live.send(&head).await;
        connection.write_all(&vec![b'a'; SENT]).await.unwrap();
        let answer = read_to_end(connection).await;
        let refused = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(refused, "{request}: {answer}");
    }
}
