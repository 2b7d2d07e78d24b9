//! Uploads that stall.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};

use crate::support::echo::{Server, ticket_file};

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
    let server = Server::new();
    let stalled = (0..STALLED).map(|i| {
        let begun = stream::iter([Ok::<_, io::Error>(Bytes::from(head(&format!("new{i}"))))]);
        server.send(upload(Body::from_stream(begun.chain(stream::pending()))))
    });
    let watching = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(in_progress(&server), PLACES);
    };
    let (ended, ()) = tokio::join!(join_all(stalled), watching);
    for (status, _, body) in ended {
        assert!(status.is_client_error(), "{status} {body}");
    }
    assert_eq!(in_progress(&server), 0);
    // Their places are free again.
    let mut whole = head("new");
    whole.extend_from_slice(&ticket_file(2)[ticket_file(2).len() / 2..]);
    whole.extend_from_slice(b"\r\n--LINE--\r\n");
    let (status, _, body) = server.send(upload(whole.into())).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}
