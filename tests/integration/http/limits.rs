//! Limits of connections: clients that send slowly, do not read, or are too many.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tombola::server::{Drained, ListenOptions};

use crate::support::echo::{CAPACITY, ENDLESS, SILENT};
use crate::support::live::{LONG, Live, read_to_end, read_until};

const SHORT: Duration = Duration::from_millis(150);
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n";

fn patient() -> ListenOptions {
    ListenOptions {
        head_timeout: LONG,
        keep_alive: LONG,
        body_timeout: LONG,
        write_timeout: LONG,
        drain: LONG,
        ..ListenOptions::default()
    }
}

async fn timeouts(live: &Live, kind: &str) -> f64 {
    let series = format!("tombola_http_client_timeouts_total{{kind=\"{kind}\"}}");
    live.server.metric(&series).await
}

/// Sends one byte at a time until the server answers or ends the connection; returns its answer.
async fn trickle(mut connection: TcpStream, bytes: &str) -> String {
    let pause = SHORT / 5;
    for byte in bytes.bytes().cycle() {
        let ready = tokio::time::timeout(pause, connection.readable());
        if ready.await.is_ok() || connection.write_all(&[byte]).await.is_err() {
            break;
        }
    }
    read_to_end(connection).await
}

#[tokio::test]
async fn half_a_head_is_not_waited_for_however_it_trickles() {
    let options = ListenOptions {
        head_timeout: SHORT,
        ..patient()
    };
    let live = Live::with(options, 64, None).await;
    let begun = Instant::now();
    let silent = live
        .answer("GET /health HTTP/1.1\r\nHost: localhost\r\n")
        .await;
    let trickled = trickle(live.send("GET /health HTTP/1.1\r\nX: ").await, "a").await;
    for answer in [silent, trickled] {
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("request_timeout"), "{answer}");
    }
    assert_eq!(live.answer("").await, "", "nothing was asked");
    assert!(begun.elapsed() < 40 * SHORT);
    assert_eq!(timeouts(&live, "head").await, 3.0);
}

#[tokio::test]
async fn a_body_that_trickles_is_not_waited_for() {
    let options = ListenOptions {
        body_timeout: SHORT,
        ..patient()
    };
    let live = Live::with(options, 64, None).await;
    let answer = trickle(live.send(HEAD).await, " ").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("the body of the request"), "{answer}");
    assert_eq!(timeouts(&live, "body").await, 1.0);
}

#[tokio::test]
async fn an_idle_connection_ends_after_its_time() {
    let options = ListenOptions {
        keep_alive: SHORT,
        ..patient()
    };
    let live = Live::with(options, 64, None).await;
    let mut connection = live.send(HEALTH).await;
    for _ in 0..3 {
        read_until(&mut connection, "}").await;
        tokio::time::sleep(SHORT / 3).await;
        connection.write_all(HEALTH.as_bytes()).await.unwrap();
    }
    read_until(&mut connection, "}").await;
    assert_eq!(read_to_end(connection).await, "");
    assert_eq!(timeouts(&live, "idle").await, 1.0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let options = ListenOptions {
        write_timeout: SHORT,
        ..patient()
    };
    let live = Live::with(options, 64, None).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let mut connection = socket.connect(live.address).await.unwrap();
    let body = json!({"prompt": ENDLESS, "n": CAPACITY / 2, "logprobs": 5, "stream": true});
    let body = body.to_string();
    let head = HEAD.replace("1000", &body.len().to_string());
    connection
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    let deadline = Instant::now() + LONG;
    while timeouts(&live, "write").await < 1.0 {
        assert!(Instant::now() < deadline, "the client is still waited for");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    live.server.wait_for_cancelled(CAPACITY / 2).await;
    drop(connection);
}

#[tokio::test]
async fn health_answers_beside_hundreds_of_idle_and_half_open_connections() {
    let live = Live::with(patient(), 32, None).await;
    let mut open = Vec::new();
    for i in 0..300 {
        open.push(live.send(["", "GET / HT"][i % 2]).await);
    }
    for _ in 0..3 {
        let mut connection = live.send(HEALTH).await;
        let answer = read_until(&mut connection, "}").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let evicted = live
        .server
        .metric("tombola_http_connections_evicted_total")
        .await;
    assert!(evicted >= 260.0, "{evicted}");
    let open_now = live.server.metric("tombola_http_connections").await;
    assert!(open_now <= 64.0, "{open_now}");
}

#[tokio::test]
async fn while_all_connections_are_busy_only_probes_are_answered() {
    let live = Live::with(patient(), 2, None).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = live.post(&json!({"prompt": ENDLESS, "stream": true})).await;
        read_until(&mut stream, "data: ").await;
        streams.push(stream);
    }
    let health = live.answer(HEALTH).await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let refused = live.answer(&HEALTH.replace("health", "v1/models")).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("too_many_connections"), "{refused}");
    assert!(refused.contains("retry-after"), "{refused}");
    let counted = live.server.metric("tombola_http_connections_refused_total");
    assert_eq!(counted.await, 1.0);
    drop(streams);
    live.server.wait_for_cancelled(2).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while live.server.metric("tombola_http_connections").await > 0.0 {
        assert!(
            Instant::now() < deadline,
            "the connections are still counted"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let request = HEALTH.replace("health", "v1/models");
    let mut connection = live.send(&request).await;
    let served = read_until(&mut connection, "}").await;
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_requests_that_have_not_arrived() {
    let live = Live::with(patient(), 64, None).await;
    let half_head = live.send("GET /health HTTP/1.1\r\n").await;
    let half_body = live.send(&format!("{HEAD}{{")).await;
    let unused = live.send("").await;
    let mut idle = live.send(HEALTH).await;
    read_until(&mut idle, "}").await;
    let open = async || live.server.metric("tombola_http_connections").await;
    while open().await < 4.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Time for the bytes to be read.
    tokio::time::sleep(SHORT).await;
    let begun = Instant::now();
    live.stop.send(()).unwrap();
    for connection in [half_head, half_body] {
        let answer = read_to_end(connection).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#""code":"draining""#), "{answer}");
    }
    for connection in [unused, idle] {
        assert_eq!(read_to_end(connection).await, "");
    }
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
    assert!(begun.elapsed() < LONG / 6);
}

#[tokio::test]
async fn a_kept_alive_connection_ends_with_its_last_response_in_a_drain() {
    let live = Live::with(patient(), 64, None).await;
    let body = json!({"prompt": ENDLESS, "stop": "x".repeat(30), "stream": true});
    let mut stream = live.post(&body).await;
    read_until(&mut stream, "data: ").await;
    live.stop.send(()).unwrap();
    // A further request, sent too late.
    stream.write_all(HEALTH.as_bytes()).await.unwrap();
    let rest = read_to_end(stream).await;
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(!rest.contains(r#""status":"ok""#), "{rest}");
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
}

#[tokio::test]
async fn a_declared_length_beyond_the_limit_needs_no_body() {
    let live = Live::with(patient(), 64, None).await;
    let head = HEAD.replace("1000\r\n", "99999999\r\nExpect: 100-continue\r\n");
    let mut connection = live.send(&head).await;
    let answer = read_until(&mut connection, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_running_request_may_take_longer_than_any_timeout_of_clients() {
    let options = ListenOptions {
        head_timeout: SHORT,
        keep_alive: SHORT,
        body_timeout: SHORT,
        write_timeout: SHORT,
        ..patient()
    };
    let live = Live::with(options, 64, None).await;
    let mut connection = live.post(&json!({"prompt": SILENT})).await;
    live.wait_for_requests(1).await;
    let mut byte = [0];
    let read = tokio::time::timeout(3 * SHORT, connection.read(&mut byte));
    assert!(read.await.is_err(), "the server gave up");
}
