//! Uploads that stall or break off.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::echo::{Server, ticket_file};
use crate::support::live::{LONG, Live, read_to_end};

const STALLED: usize = 5;
/// Uploads that are received at once.
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
