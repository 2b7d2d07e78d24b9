//! Responses that do not come from hyper: to what it cannot parse, or must not wait for.

use std::io;

use axum::body::to_bytes;
use axum::response::IntoResponse as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::server::body::DISCARD_TIMEOUT;
use crate::server::error::ApiError;
use crate::server::request_id::RequestId;

/// Answers with an error and closes the connection. Takes at most as long as a refused body may.
pub async fn refuse(mut io: impl AsyncRead + AsyncWrite + Unpin, error: ApiError) {
    let answer = async {
        io.write_all(&response(error).await).await?;
        io.shutdown().await?;
        drain(&mut io).await
    };
    // Best effort: the connection ends anyway.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, answer).await;
}

/// Reads and drops what the client of an answered request still sends, as long as a refused body
/// may take.
pub async fn linger(mut io: impl AsyncRead + Unpin) {
    // Best effort: the connection ends anyway.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, drain(&mut io)).await;
}

/// Reads to the end: closing a socket with unread input resets it, and the client may lose the
/// response.
async fn drain(io: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut rest = [0; 4096];
    while io.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn response(error: ApiError) -> Vec<u8> {
    let (parts, body) = error.into_response().into_parts();
    // The body of an error lies in memory.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let status = parts.status;
    let id = RequestId::random();
    let mut response = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in &parts.headers {
        response.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    let end = format!(
        "x-request-id: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        id.as_str(),
        body.len()
    );
    response.extend(end.as_bytes());
    response.extend(&body);
    response
}
