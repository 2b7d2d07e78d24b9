//! Reception of an upload: a place in line before its first byte is read, then its form, with the
//! file spooled into the ticket folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::blocking::blocking;
use super::body::DISCARD_TIMEOUT;
use super::caller::Caller;
use super::error::ApiError;
use super::quota;
use super::state::AppState;

/// Uploads that are received and validated at the same time; further ones wait.
const CONCURRENT_UPLOADS: usize = 4;
/// Uploads that wait; further ones are answered with status 429.
const WAITING_UPLOADS: usize = 32;
/// Largest value of `name` and `replace`, in bytes.
const MAX_FIELD_BYTES: usize = 256;

/// Bounds of the uploads in progress: how many, how many wait, and their bytes on disk.
pub struct UploadGate {
    running: Semaphore,
    waiting: Semaphore,
    /// Bytes on disk of the uploads in progress.
    spooled: AtomicU64,
    spool_budget: u64,
    /// Milliseconds that recent uploads took, as a moving average.
    recent_ms: AtomicU64,
}

/// Place of an upload in progress; its spooled bytes return to the budget when it is dropped.
pub struct UploadPlace<'a> {
    gate: &'a UploadGate,
    begun: Instant,
    spooled: u64,
    _running: SemaphorePermit<'a>,
}

impl UploadGate {
    /// A gate without uploads, whose files may take `spool_budget` bytes together.
    pub fn new(spool_budget: u64) -> Self {
        Self {
            running: Semaphore::new(CONCURRENT_UPLOADS),
            waiting: Semaphore::new(WAITING_UPLOADS),
            spooled: AtomicU64::new(0),
            spool_budget,
            recent_ms: AtomicU64::new(0),
        }
    }

    /// Waits for a place, in order of arrival. The semaphores are never closed.
    ///
    /// # Errors
    /// Too many uploads wait already.
    async fn enter(&self) -> Result<UploadPlace<'_>, ApiError> {
        let busy = |_| ApiError::UploadQueueFull {
            retry_after: self.expected_wait(),
        };
        let waiting = self.waiting.try_acquire().map_err(busy)?;
        let running = self.running.acquire().await.map_err(|closed| {
            let reason = closed.to_string();
            ApiError::Internal(reason)
        })?;
        drop(waiting);
        Ok(UploadPlace {
            gate: self,
            begun: Instant::now(),
            spooled: 0,
            _running: running,
        })
    }

    /// Seconds until an upload that arrives now would have its turn, at the recent pace.
    fn expected_wait(&self) -> u64 {
        let waiting = WAITING_UPLOADS - self.waiting.available_permits();
        let rounds = waiting.div_ceil(CONCURRENT_UPLOADS).max(1) as u64;
        let recent_ms = self.recent_ms.load(Ordering::Relaxed);
        recent_ms.saturating_mul(rounds).div_ceil(1000).max(1)
    }
}

impl UploadPlace<'_> {
    /// Takes `bytes` from the budget.
    fn spool(&mut self, bytes: u64) -> Result<(), ApiError> {
        let gate = self.gate;
        let total = gate.spooled.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.spooled += bytes;
        if total > gate.spool_budget {
            return Err(ApiError::UploadQueueFull {
                retry_after: gate.expected_wait(),
            });
        }
        Ok(())
    }
}

impl Drop for UploadPlace<'_> {
    fn drop(&mut self) {
        self.gate.spooled.fetch_sub(self.spooled, Ordering::AcqRel);
        let took = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.gate.recent_ms.load(Ordering::Relaxed);
        // A lost update of the average does no harm.
        let average = before - before / 8 + took / 8;
        self.gate.recent_ms.store(average.max(1), Ordering::Relaxed);
    }
}

/// A received form. The file is deleted on drop unless it is published.
pub struct Upload<'a> {
    pub name: String,
    /// `None` if the form does not say.
    pub replace: Option<bool>,
    pub file: NamedTempFile,
    /// Kept until the ticket is published, since validation reads the file into memory.
    pub place: UploadPlace<'a>,
}

/// Receives a form once it is its turn. After a refusal, discards what the client still sends.
///
/// # Errors
/// Too many uploads are in progress; the form is malformed, breaks off or is too large; the folder
/// cannot be written.
pub async fn receive<'a>(
    form: &mut Multipart,
    state: &'a Arc<AppState>,
    caller: &Caller,
) -> Result<Upload<'a>, ApiError> {
    let received = match state.uploads.enter().await {
        Ok(place) => read_form(form, state, caller, place).await,
        Err(busy) => Err(busy),
    };
    if let Err(error) = &received {
        state.refusals.record_upload(&state.metrics, error);
        let rest = async { while let Ok(Some(_)) = form.next_field().await {} };
        // Best effort: the response is the same if the time runs out.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
    }
    received
}

async fn read_form<'a>(
    form: &mut Multipart,
    state: &Arc<AppState>,
    caller: &Caller,
    mut place: UploadPlace<'a>,
) -> Result<Upload<'a>, ApiError> {
    let (mut name, mut replace, mut file) = (None, None, None);
    while let Some(mut field) = form.next_field().await.map_err(bad_form)? {
        let field_name = field.name().unwrap_or_default().to_owned();
        let duplicate = match field_name.as_str() {
            "name" => {
                let text = short_text(&mut field, "name").await?;
                caller.trail.ticket(&text);
                name.replace(text).is_some()
            }
            "replace" => replace
                .replace(flag(&mut field, "replace").await?)
                .is_some(),
            "file" => {
                let spooled = spool(&mut field, state, caller, &mut place).await?;
                file.replace(spooled).is_some()
            }
            other => {
                let problem = "is not a field of an upload; expected `name`, `file` or `replace`";
                let other: String = other.chars().take(MAX_FIELD_BYTES).collect();
                return Err(ApiError::invalid(other, problem));
            }
        };
        if duplicate {
            return Err(ApiError::invalid(field_name, "is given twice"));
        }
    }
    let missing = |param: &str| ApiError::invalid(param, "is missing from the form");
    Ok(Upload {
        name: name.ok_or_else(|| missing("name"))?,
        replace,
        file: file.ok_or_else(|| missing("file"))?,
        place,
    })
}

async fn short_text(field: &mut Field<'_>, name: &'static str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(bad_form)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let problem = format!("is longer than {MAX_FIELD_BYTES} bytes");
            return Err(ApiError::invalid(name, problem));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid(name, "is not UTF-8"))
}

async fn flag(field: &mut Field<'_>, name: &'static str) -> Result<bool, ApiError> {
    match short_text(field, name).await?.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::invalid(name, "must be true or false")),
    }
}

/// Streams the field to a temporary file in the ticket folder, which is removed on an error or a
/// disconnect.
async fn spool(
    field: &mut Field<'_>,
    state: &Arc<AppState>,
    caller: &Caller,
    place: &mut UploadPlace<'_>,
) -> Result<NamedTempFile, ApiError> {
    let registry = state.registry.clone();
    let staged = blocking(move || Ok(registry.stage()?)).await?;
    let path = staged.path().to_owned();
    let io_error = |error| ApiError::from(state.registry.staging_failed(&path, error));
    let file = staged.as_file().try_clone().map_err(io_error)?;
    let mut file = tokio::fs::File::from_std(file);
    let limit = quota::largest_file(caller, state.options.max_ticket_bytes);
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await.map_err(bad_form)? {
        bytes += chunk.len() as u64;
        if bytes > limit {
            let what = "ticket";
            return Err(ApiError::TooLarge { what, limit });
        }
        place.spool(chunk.len() as u64)?;
        file.write_all(&chunk).await.map_err(io_error)?;
    }
    file.flush().await.map_err(io_error)?;
    Ok(staged)
}

fn bad_form(error: MultipartError) -> ApiError {
    ApiError::BadForm(error.body_text())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn uploads_wait_in_line_and_the_line_is_bounded() {
        let gate = UploadGate::new(100);
        let mut places = Vec::new();
        for _ in 0..CONCURRENT_UPLOADS {
            places.push(gate.enter().await.unwrap());
        }
        let mut waiting: Vec<_> = (0..WAITING_UPLOADS)
            .map(|_| Box::pin(gate.enter()))
            .collect();
        for wait in &mut waiting {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        assert!(matches!(
            gate.enter().await,
            Err(ApiError::UploadQueueFull { .. })
        ));
        drop(places.pop());
        let first = waiting.remove(0).await;
        assert!(first.is_ok());
        // A client that gives up leaves the line.
        drop(waiting.pop());
        assert_eq!(gate.waiting.available_permits(), 2);
    }

    #[tokio::test]
    async fn the_bytes_of_uploads_in_progress_are_bounded_and_returned() {
        let gate = UploadGate::new(100);
        let (mut a, mut b) = (gate.enter().await.unwrap(), gate.enter().await.unwrap());
        assert!(a.spool(60).is_ok());
        assert!(matches!(b.spool(60), Err(ApiError::UploadQueueFull { .. })));
        drop(b);
        assert!(a.spool(40).is_ok());
        drop(a);
        assert_eq!(gate.spooled.load(Ordering::Relaxed), 0);
    }
}
