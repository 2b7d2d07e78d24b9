//! Encodings of request bodies: gzip, UTF-16, byte order marks.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::live::{LONG, Live, read_to_end};

/// The bytes as `gzip` packs them.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(["-c", "-9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip runs");
    let mut input = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || input.write_all(&bytes));
    let output = gzip.wait_with_output().expect("gzip ends");
    writing.join().unwrap().unwrap();
    output.stdout
}

/// The answer to a body with these headers.
async fn post(live: &Live, path: &str, headers: &str, body: &[u8]) -> String {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(live.address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    // A refused body may not be read to its end.
    let _ = connection.write_all(body).await;
    read_to_end(connection).await
}

const JSON: &str = "Content-Type: application/json\r\n";
const GZIP: &str = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
const COMPLETIONS: &str = "/v1/completions";

fn assert_status(answer: &str, status: u16) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
}

#[tokio::test]
async fn compressed_bodies_are_read_within_the_limit_of_bodies() {
    let live = Live::start(LONG).await;
    let body = json!({"prompt": "a"}).to_string();
    let packed = gzip(body.as_bytes());
    assert_status(&post(&live, COMPLETIONS, GZIP, &packed).await, 200);
    let upper = GZIP.replace("gzip", "X-GZIP");
    assert_status(&post(&live, COMPLETIONS, &upper, &packed).await, 200);
    // The limit of this server is 4 KiB.
    let bomb = gzip(&vec![b' '; 1 << 20]);
    assert!(bomb.len() < 4096);
    let answer = post(&live, COMPLETIONS, GZIP, &bomb).await;
    assert_status(&answer, 413);
    assert!(answer.contains("request_too_large"), "{answer}");
    // Members without content decompress to nothing, but are counted as they arrive.
    let empty = gzip(b"").repeat(1000);
    assert_status(&post(&live, COMPLETIONS, GZIP, &empty).await, 413);
}

#[tokio::test]
async fn a_compressed_body_that_is_malformed_or_cut_is_400() {
    let live = Live::start(LONG).await;
    let packed = gzip(json!({"prompt": "a"}).to_string().as_bytes());
    let mut wrong_sum = packed.clone();
    let checksum = wrong_sum.len() - 8;
    wrong_sum[checksum] ^= 1;
    for body in [
        &packed[..packed.len() - 4],
        &packed[..5],
        b"{\"prompt\": \"a\"}",
        &wrong_sum,
    ] {
        let answer = post(&live, COMPLETIONS, GZIP, body).await;
        assert_status(&answer, 400);
        assert!(answer.contains("invalid_body"), "{answer}");
    }
}

#[tokio::test]
async fn bytes_after_the_first_member_of_a_compressed_body_are_refused() {
    let live = Live::start(LONG).await;
    let packed = gzip(json!({"prompt": "a"}).to_string().as_bytes());
    for rest in [b"x", &b"garbage"[..], &gzip(b" "), &packed] {
        let answer = post(&live, COMPLETIONS, GZIP, &[&packed, rest].concat()).await;
        assert_status(&answer, 400);
        assert!(answer.contains("extra bytes"), "{answer}");
    }
}

#[tokio::test]
async fn other_encodings_are_415_by_name() {
    let live = Live::start(LONG).await;
    let json = "Content-Type: application/json\r\nContent-Encoding: br\r\n";
    let form = "Content-Type: multipart/form-data; boundary=A\r\nContent-Encoding: gzip\r\n";
    for (path, headers, name, accepted) in [
        (COMPLETIONS, json, "`br`", "accept-encoding: gzip, identity"),
        ("/v1/tickets", form, "`gzip`", "accept-encoding: identity"),
    ] {
        let answer = post(&live, path, headers, b"x").await;
        assert_status(&answer, 415);
        assert!(answer.contains("unsupported_encoding"), "{answer}");
        assert!(
            answer.contains(name) && answer.contains(accepted),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn json_is_read_from_utf_16_and_after_a_byte_order_mark() {
    let live = Live::start(LONG).await;
    let text = json!({"prompt": "ab"}).to_string();
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let charset = "Content-Type: application/json; charset=utf-16le\r\n";
    let marked = |mark: &[u8], text: &[u8]| [mark, text].concat();
    for (headers, body) in [
        (JSON, marked(b"\xEF\xBB\xBF", text.as_bytes())),
        (JSON, marked(b"\xFF\xFE", &little)),
        (JSON, marked(b"\xFE\xFF", &big)),
        (charset, little.clone()),
        (GZIP, gzip(&marked(b"\xFE\xFF", &big))),
    ] {
        let answer = post(&live, COMPLETIONS, headers, &body).await;
        assert_status(&answer, 200);
        assert!(answer.contains("\"text\""), "{answer}");
    }
    let cut = marked(b"\xFF\xFE", &little[..little.len() - 1]);
    let answer = post(&live, COMPLETIONS, JSON, &cut).await;
    assert_status(&answer, 400);
    assert!(answer.contains("UTF-16"), "{answer}");
}
