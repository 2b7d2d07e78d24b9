//! Reading request bodies.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{StreamExt as _, TryStream, TryStreamExt as _};

use super::error::ApiError;

/// Time to read and discard the rest of a refused body: a client disconnected while it is
/// still writing may never see the response.
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads a whole body.
///
/// # Errors
/// The body exceeds `limit` bytes, or the connection breaks off.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken(&error))?;
        if bytes.len() + chunk.len() > limit {
            discard(chunks).await;
            let (what, limit) = ("body", limit as u64);
            return Err(ApiError::TooLarge { what, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Reads and drops a body, as long as the client may take.
pub async fn discard(body: impl TryStream) {
    let mut chunks = pin!(body.into_stream());
    let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
    // Best effort: the response is the same if the time runs out.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Error of a body that breaks off: what the client did wrong if the transport knows it.
fn broken(error: &axum::Error) -> ApiError {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        let inner = error.downcast_ref().and_then(io::Error::get_ref);
        match inner.and_then(|inner| inner.downcast_ref()) {
            Some(ApiError::RequestTimeout(part)) => return ApiError::RequestTimeout(part),
            Some(ApiError::BadHttp(problem)) => return ApiError::BadHttp(problem.clone()),
            _ => source = error.source(),
        }
    }
    ApiError::BadBody(error.to_string())
}
