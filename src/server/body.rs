//! Reading request bodies.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;

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
        let chunk = chunk.map_err(|error| ApiError::BadBody(error.to_string()))?;
        if bytes.len() + chunk.len() > limit {
            let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
            // Best effort: the response is the same if the time runs out.
            let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
            let (what, limit) = ("body", limit as u64);
            return Err(ApiError::TooLarge { what, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}
