//! Reception of request bodies, in memory or on disk.

use std::error::Error;
use std::io::{self, Read as _, Seek as _};
use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::http::header;
use futures_util::{StreamExt as _, TryStream, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use super::blocking::blocking;
use super::encoding::{Accepted, Charset, Coding, Raw};
use super::error::ApiError;
use super::shares::{Party, Share, Shared};
use crate::access::Shortage;

/// Time to read and discard the rest of a refused body: a client disconnected while it is
/// still writing may never see the response.
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a body that are received into memory; the rest goes to disk.
const MEMORY_BYTES: usize = 64 << 10;

/// Bodies on their way from clients. They wait for the end of their slow senders on disk, so that
/// unfinished ones take little memory; the bytes of all are bounded, and those of each tenant.
#[derive(Debug)]
pub struct Bodies {
    memory: Shared,
    disk: Shared,
}

impl Bodies {
    /// Bodies that together take at most this much memory and disk, in bytes. One that finds no
    /// room in memory goes to disk.
    pub fn new(memory: usize, disk: usize) -> Self {
        Self {
            memory: Shared::new(memory),
            disk: Shared::new(disk),
        }
    }

    /// Receives a whole body from `party`, decoded if it is compressed. All bounds hold for what
    /// the decoder yields.
    ///
    /// # Errors
    /// The body exceeds `limit` bytes, which is refused before its first byte is read if its length
    /// is declared; it breaks off or comes too slowly; its encoding is malformed or not supported;
    /// or there is no room for it.
    pub async fn receive(
        &self,
        party: &Party,
        request: Request,
        limit: usize,
    ) -> Result<Received, ApiError> {
        let (parts, body) = request.into_parts();
        let coding = Coding::of(&parts.headers, Accepted::GzipToo)?;
        let declared = HttpBody::size_hint(&body).lower();
        let raw = Raw::new(body);
        if declared > limit as u64 {
            // A client that waits for permission to send needs the answer only.
            if !parts.headers.contains_key(header::EXPECT) {
                discard(raw.stream()).await;
            }
            return Err(too_large(limit));
        }
        let mut chunks = match coding {
            Coding::Identity => Body::from_stream(raw.stream()),
            Coding::Gzip => raw.gunzipped(limit).await,
        }
        .into_data_stream();
        match self.receive_chunks(party, &mut chunks, limit).await {
            Ok(received) => Ok(Received {
                charset: Charset::of(&parts.headers),
                ..received
            }),
            Err(error) => {
                if matches!(
                    error,
                    ApiError::TooLarge { .. } | ApiError::BodiesFull | ApiError::BodiesShareFull
                ) {
                    discard(raw.stream()).await;
                }
                Err(error)
            }
        }
    }

    /// Receives a whole body from `party` into memory.
    ///
    /// # Errors
    /// As for [`Bodies::receive`] and [`Received::into_bytes`].
    pub async fn read(
        &self,
        party: &Party,
        request: Request,
        limit: usize,
    ) -> Result<Vec<u8>, ApiError> {
        let received = self.receive(party, request, limit).await?;
        blocking(move || received.into_bytes()).await
    }

    async fn receive_chunks(
        &self,
        party: &Party,
        chunks: &mut BodyDataStream,
        limit: usize,
    ) -> Result<Received, ApiError> {
        let mut memory = self.memory.share(party);
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| broken(&error))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large(limit));
            }
            if bytes.len() + chunk.len() > MEMORY_BYTES || memory.grow(chunk.len()).is_err() {
                let mut spool = Spool::begin(self.disk.share(party), bytes).await?;
                drop(memory);
                spool.write(&chunk).await?;
                return spool.receive(chunks, limit).await;
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Received {
            bytes: bytes.len(),
            content: Content::Memory(bytes),
            charset: Charset::default(),
            _share: memory,
        })
    }
}

/// A body that has arrived.
#[derive(Debug)]
pub struct Received {
    bytes: usize,
    content: Content,
    charset: Charset,
    _share: Share,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    Disk(std::fs::File),
}

impl Received {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The body in memory; text of another encoding becomes UTF-8, without a byte order mark. May
    /// block.
    ///
    /// # Errors
    /// The disk cannot be read, or the text is malformed.
    pub fn into_bytes(self) -> Result<Vec<u8>, ApiError> {
        let charset = self.charset;
        charset.decode(self.read()?)
    }

    fn read(self) -> Result<Vec<u8>, ApiError> {
        let mut file = match self.content {
            Content::Memory(bytes) => return Ok(bytes),
            Content::Disk(file) => file,
        };
        let mut bytes = Vec::with_capacity(self.bytes);
        file.rewind().map_err(disk_error)?;
        file.read_to_end(&mut bytes).map_err(disk_error)?;
        Ok(bytes)
    }
}

/// A body on its way to disk.
struct Spool {
    file: tokio::fs::File,
    bytes: usize,
    share: Share,
}

impl Spool {
    /// Moves the first bytes of a body to a file without a name.
    async fn begin(share: Share, bytes: Vec<u8>) -> Result<Self, ApiError> {
        let file = blocking(|| temporary_file().map_err(disk_error)).await?;
        let mut spool = Self {
            file: tokio::fs::File::from_std(file),
            bytes: 0,
            share,
        };
        spool.write(&bytes).await?;
        Ok(spool)
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        self.share
            .grow(chunk.len())
            .map_err(|shortage| match shortage {
                Shortage::Full => ApiError::BodiesFull,
                Shortage::Share => ApiError::BodiesShareFull,
            })?;
        self.file.write_all(chunk).await.map_err(disk_error)?;
        self.bytes += chunk.len();
        Ok(())
    }

    async fn receive(
        mut self,
        chunks: &mut BodyDataStream,
        limit: usize,
    ) -> Result<Received, ApiError> {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| broken(&error))?;
            if self.bytes + chunk.len() > limit {
                return Err(too_large(limit));
            }
            self.write(&chunk).await?;
        }
        self.file.flush().await.map_err(disk_error)?;
        Ok(Received {
            bytes: self.bytes,
            content: Content::Disk(self.file.into_std().await),
            charset: Charset::default(),
            _share: self.share,
        })
    }
}

/// A file without a name, in `TMPDIR`, else in `/var/tmp` (which is on disk, unlike many a `/tmp`),
/// else in `/tmp`.
fn temporary_file() -> io::Result<std::fs::File> {
    if std::env::var_os("TMPDIR").is_none()
        && let Ok(file) = tempfile::tempfile_in("/var/tmp")
    {
        return Ok(file);
    }
    tempfile::tempfile()
}

fn disk_error(error: io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::BodiesFull,
        _ => ApiError::Internal(format!("cannot keep a request body on disk: {error}")),
    }
}

fn too_large(limit: usize) -> ApiError {
    let (what, limit) = ("body", limit as u64);
    ApiError::TooLarge { what, limit }
}

/// Reads and drops a body, as long as the client may take.
pub async fn discard(body: impl TryStream) {
    let mut chunks = pin!(body.into_stream());
    let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
    // Best effort: the response is the same if the time runs out.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Error of a body that breaks off.
fn broken(error: &axum::Error) -> ApiError {
    client_fault(error).unwrap_or_else(|| ApiError::BadBody(error.to_string()))
}

/// What the client did wrong on its connection, if that caused the failure to read a body.
pub fn client_fault(error: &(dyn Error + 'static)) -> Option<ApiError> {
    let mut source = Some(error);
    while let Some(error) = source {
        let inner = error.downcast_ref().and_then(io::Error::get_ref);
        match inner.and_then(|inner| inner.downcast_ref()) {
            Some(ApiError::RequestTimeout(part)) => return Some(ApiError::RequestTimeout(part)),
            Some(ApiError::BadHttp(problem)) => return Some(ApiError::BadHttp(problem.clone())),
            Some(&ApiError::TooLarge { what, limit }) => {
                return Some(ApiError::TooLarge { what, limit });
            }
            Some(ApiError::BadForm(problem)) => return Some(ApiError::BadForm(problem.clone())),
            _ => source = error.source(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, stream};
    use tokio::sync::mpsc;

    /// A request whose body arrives as it is sent to the channel.
    fn request() -> (mpsc::UnboundedSender<Vec<u8>>, Request) {
        let (sender, mut chunks) = mpsc::unbounded_channel();
        let chunks = stream::poll_fn(move |cx| chunks.poll_recv(cx).map(|c| c.map(io::Result::Ok)));
        (sender, Request::new(Body::from_stream(chunks)))
    }

    #[tokio::test]
    async fn a_body_arrives_whole_by_memory_or_disk() {
        let bodies = Bodies::new(2 * MEMORY_BYTES, 2 << 20);
        for size in [0, 1, MEMORY_BYTES, MEMORY_BYTES + 1, 1 << 20] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let (sender, request) = request();
            for chunk in bytes.chunks(10_000) {
                sender.send(chunk.to_vec()).unwrap();
            }
            drop(sender);
            let received = bodies.receive(&None, request, 1 << 20).await.unwrap();
            assert_eq!(received.len(), size);
            let on_disk = matches!(received.content, Content::Disk(_));
            assert_eq!(on_disk, size > MEMORY_BYTES, "{size}");
            assert_eq!(received.into_bytes().unwrap(), bytes);
        }
        assert_eq!(bodies.memory.taken(), 0);
        assert_eq!(bodies.disk.taken(), 0);
    }

    #[tokio::test]
    async fn unfinished_bodies_take_little_memory_and_bounded_disk() {
        const SENT: usize = 200_000;
        let bodies = Bodies::new(10 * MEMORY_BYTES, 100 * SENT);
        let mut unfinished = Vec::new();
        // One party alone gets four fifths.
        for _ in 0..80 {
            let (sender, request) = request();
            sender.send(vec![b'a'; SENT]).unwrap();
            let mut receiving = Box::pin(bodies.receive(&None, request, 1 << 20));
            while bodies.disk.taken() < SENT * (unfinished.len() + 1) {
                assert!(receiving.as_mut().now_or_never().is_none());
                tokio::task::yield_now().await;
            }
            unfinished.push((sender, receiving));
        }
        assert_eq!(bodies.memory.taken(), 0);
        let whole = || Request::new(Body::from(vec![b'a'; SENT]));
        let refused = bodies.receive(&None, whole(), 1 << 20).await;
        let share_full = matches!(refused, Err(ApiError::BodiesShareFull));
        assert!(share_full, "{refused:?}");
        let other = Some("acme".parse().unwrap());
        assert!(bodies.receive(&other, whole(), 1 << 20).await.is_ok());
        // Small bodies still have memory.
        let request = Request::new(Body::from("{}"));
        assert!(bodies.receive(&None, request, 1 << 20).await.is_ok());
        drop(unfinished);
        assert_eq!(bodies.disk.taken(), 0);
    }

    #[tokio::test]
    async fn a_declared_length_beyond_the_limit_is_refused_before_it_is_read() {
        let bodies = Bodies::new(1 << 20, 1 << 20);
        let request = Request::post("/").header(header::EXPECT, "100-continue");
        let request = request.body(Body::from(vec![0; 101])).unwrap();
        let refused = bodies.receive(&None, request, 100).await;
        assert!(matches!(
            refused,
            Err(ApiError::TooLarge { limit: 100, .. })
        ));
    }
}
