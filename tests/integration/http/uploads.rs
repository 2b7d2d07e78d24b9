//! Uploads that stall, break off, or come as no parser should buffer them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tombola::server::router;
use tower::ServiceExt as _;

use crate::support::echo::{Server, ticket_file};
use crate::support::live::{LONG, Live, read_to_end};

const STALLED: usize = 5;
/// Uploads of one tenant that are received at once.
const PLACES: usize = 4;

/// The form up to the middle of its file.
fn head(name: &str) -> Vec<u8> {
    let text = format!(
        "--LINE\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n{name}\r\n\
         --LINE\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n"
    );
    let file = ticket_file(2);
    [text.as_bytes(), &file[..file.len() / 2]].concat()
}

fn upload(body: Body) -> Request<Body> {
    let request = Request::post("/v1/tickets");
    let request = request.header("content-type", "multipart/form-data; boundary=LINE");
    request.body(body).unwrap()
}

/// Files of uploads in progress.
fn in_progress(server: &Server) -> usize {
    let entries = std::fs::read_dir(server.tickets.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).count()
}

#[tokio::test]
async fn stalled_uploads_wait_before_their_first_byte_and_end_by_the_body_timeout() {
    let live = Live::start(LONG).await;
    let server = &live.server;
    let mut stalled = Vec::new();
    for i in 0..STALLED {
        let mut connection = TcpStream::connect(live.address).await.unwrap();
        let form = head(&format!("new{i}"));
        let request = format!(
            "POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
             Content-Type: multipart/form-data; boundary=LINE\r\n\r\n",
            2 * form.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        connection.write_all(&form).await.unwrap();
        stalled.push(read_to_end(connection));
    }
    let watching = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(in_progress(server), PLACES);
    };
    let (ended, ()) = tokio::join!(join_all(stalled), watching);
    for answer in ended {
        let timed_out = answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout");
        assert!(timed_out, "{answer}");
    }
    assert_eq!(in_progress(server), 0);
    // Their places are free again.
    let mut whole = head("new");
    whole.extend_from_slice(&ticket_file(2)[ticket_file(2).len() / 2..]);
    whole.extend_from_slice(b"\r\n--LINE--\r\n");
    let (status, _, body) = server.send(upload(whole.into())).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}

#[tokio::test]
async fn an_upload_in_malformed_chunks_says_so() {
    let live = Live::start(LONG).await;
    let answer = live
        .answer(
            "POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
             Content-Type: multipart/form-data; boundary=LINE\r\n\r\n\
             6\r\n--LINE\r\nno size\r\n",
        )
        .await;
    let malformed = answer.starts_with("HTTP/1.1 400") && answer.contains("bad_http");
    assert!(malformed, "{answer}");
    assert_eq!(in_progress(&live.server), 0);
}

#[tokio::test]
async fn a_form_that_never_begins_is_refused_early_and_the_client_learns_why() {
    const SENT: usize = 4 << 20;
    let live = Live::start(LONG).await;
    let mut connection = live
        .send(&format!(
            "POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SENT}\r\n\
             Content-Type: multipart/form-data; boundary=LINE\r\n\r\n"
        ))
        .await;
    // All of it is written before the answer is read.
    connection.write_all(&vec![b'a'; SENT]).await.unwrap();
    let answer = read_to_end(connection).await;
    let refused = answer.starts_with("HTTP/1.1 400") && answer.contains("exceed 32768 bytes");
    assert!(refused, "{answer}");
}

/// An upload that runs in a task of its own. Its body arrives as it is sent to the channel.
struct Sent {
    chunks: mpsc::UnboundedSender<Vec<u8>>,
    /// Whether the server has begun to read the body.
    read: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Sent {
    fn begin(server: &Server) -> Self {
        let (chunks, mut receiver) = mpsc::unbounded_channel();
        let read = Arc::new(AtomicBool::new(false));
        let polled = read.clone();
        let body = stream::poll_fn(move |cx| {
            polled.store(true, Ordering::SeqCst);
            receiver.poll_recv(cx).map(|c| c.map(std::io::Result::Ok))
        });
        let request = upload(Body::from_stream(body));
        let answer = router(server.state.clone()).oneshot(request);
        let task = tokio::spawn(async move { drop(answer.await) });
        Self { chunks, read, task }
    }
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !condition() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn an_upload_keeps_its_place_while_its_file_is_validated_though_its_client_has_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = Server::new();
        let uploads: Vec<Sent> = (0..PLACES).map(|_| Sent::begin(&server)).collect();
        for (i, sent) in uploads.iter().enumerate() {
            sent.chunks.send(head(&format!("new{i}"))).unwrap();
        }
        until(|| in_progress(&server) == PLACES).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // No validation begins until the only thread for them is free.
        let (release, released) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || released.recv());
        for sent in uploads {
            sent.chunks.send(b"\r\n--LINE--\r\n".to_vec()).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            sent.task.abort();
            assert!(sent.task.await.unwrap_err().is_cancelled());
        }
        let next = Sent::begin(&server);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!next.read.load(Ordering::SeqCst), "it has a place already");
        release.send(()).unwrap();
        until(|| next.read.load(Ordering::SeqCst)).await;
    });
}

#[tokio::test]
async fn malformed_preconditions_are_refused_before_the_form_is_read() {
    let server = Server::new();
    let body = stream::poll_fn(|_| -> std::task::Poll<Option<std::io::Result<Vec<u8>>>> {
        panic!("the form is read");
    });
    let mut request = upload(Body::from_stream(body));
    let value = "\"abc\"".parse().unwrap();
    request.headers_mut().insert("if-none-match", value);
    let (status, _, body) = server.send(request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body.contains("If-None-Match"), "{body}");
}
