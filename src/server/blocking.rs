//! Blocking work off the runtime's worker threads.

use super::error::ApiError;

/// Runs work that may block for more than a millisecond on the blocking pool.
///
/// # Errors
/// Those of the work; [`ApiError::Internal`] if it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ApiError::Internal(error.to_string())))
}
