//! Body of a form on its way to the parser.
//!
//! The parser (`multer`) reads ahead for as long as bytes are ready, and buffers a preamble or the
//! headers of a part without bound, searching all of it again each time. So it gets one piece at a
//! time, and few of them before it makes progress.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Error;
use axum::body::{BodyDataStream, Bytes};
use futures_util::Stream;
use tokio::time::Instant;

use super::error::ApiError;

/// Bytes after which the parser must have found a field, or a part of its content.
const MAX_UNPARSED: usize = 32 << 10;

/// Bytes per second that the client of a form must send on average, after `GRACE`: a form holds one
/// of a few places.
const MIN_RATE: u64 = 64 << 10;

/// Time spent waiting for the client that does not count against `MIN_RATE`.
const GRACE: Duration = Duration::from_secs(10);

/// Bytes that the parser has taken since it made progress.
#[derive(Clone, Debug, Default)]
pub struct Unparsed(Arc<AtomicUsize>);

impl Unparsed {
    /// Notes that the parser has found a field, or a part of its content.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Body of a form. Fails if the parser takes more than it may without progress, or if the client
/// is too slow.
pub struct FormBody {
    pieces: BodyDataStream,
    unparsed: Unparsed,
    pace: Pace,
    /// Whether the last poll yielded a piece, which the parser shall look at before the next one.
    yielded: bool,
}

impl FormBody {
    /// Wraps a body, and counts in `unparsed`.
    pub fn new(pieces: BodyDataStream, unparsed: Unparsed) -> Self {
        Self {
            pieces,
            unparsed,
            pace: Pace::default(),
            yielded: false,
        }
    }
}

impl Stream for FormBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.yielded) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.unparsed.0.load(Ordering::Relaxed) > MAX_UNPARSED {
            let problem = format!(
                "the headers of a part, or what precedes the first one, exceed {MAX_UNPARSED} bytes"
            );
            return Poll::Ready(Some(Err(failure(ApiError::BadForm(problem)))));
        }
        let now = Instant::now();
        let polled = Pin::new(&mut this.pieces).poll_next(cx);
        if polled.is_pending() {
            this.pace.waits(now);
        }
        let piece = match ready!(polled) {
            Some(Ok(piece)) => piece,
            ended => return Poll::Ready(ended),
        };
        if this.pace.received(now, piece.len()) {
            let error = ApiError::RequestTimeout("body");
            return Poll::Ready(Some(Err(failure(error))));
        }
        this.unparsed.0.fetch_add(piece.len(), Ordering::Relaxed);
        this.yielded = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// An error that [`client_fault`](super::body::client_fault) finds.
fn failure(error: ApiError) -> Error {
    Error::new(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// How fast a client sends, measured while it is waited for.
#[derive(Debug, Default)]
struct Pace {
    waits_since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes that the client is waited for.
    fn waits(&mut self, now: Instant) {
        self.waits_since.get_or_insert(now);
    }

    /// Notes a piece; returns whether the client is too slow.
    fn received(&mut self, now: Instant, bytes: usize) -> bool {
        if let Some(since) = self.waits_since.take() {
            self.waited += now - since;
        }
        self.bytes += bytes as u64;
        let earned = Duration::from_secs_f64(self.bytes as f64 / MIN_RATE as f64);
        self.waited > GRACE + earned
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::{FromRequest as _, Multipart, Request};
    use futures_util::{StreamExt as _, stream};

    use super::*;
    use crate::server::body::client_fault;

    fn form(pieces: impl Stream<Item = Bytes> + Send + 'static) -> (Body, Unparsed) {
        let unparsed = Unparsed::default();
        let pieces = Body::from_stream(pieces.map(io::Result::Ok)).into_data_stream();
        let body = FormBody::new(pieces, unparsed.clone());
        (Body::from_stream(body), unparsed)
    }

    async fn parser(body: Body) -> Multipart {
        let request = Request::post("/").header("content-type", "multipart/form-data; boundary=L");
        let request = request.body(body).unwrap();
        Multipart::from_request(request, &()).await.unwrap()
    }

    #[tokio::test]
    async fn the_parser_buffers_little_that_is_not_the_content_of_a_part() {
        let endless = || stream::repeat(Bytes::from_static(&[b'a'; 1 << 10]));
        for begin in ["", "--L\r\nContent-Disposition: form-data; name=\""] {
            let begin = stream::iter([Bytes::from_static(begin.as_bytes())]);
            let (body, unparsed) = form(begin.chain(endless()));
            let error = parser(body).await.next_field().await.unwrap_err();
            let fault = client_fault(&error);
            assert!(matches!(fault, Some(ApiError::BadForm(_))), "{fault:?}");
            let taken = unparsed.0.load(Ordering::Relaxed);
            assert!(taken <= MAX_UNPARSED + (2 << 10), "{taken}");
        }
    }

    #[tokio::test]
    async fn the_content_of_a_part_arrives_whole_whatever_its_size() {
        let head = "--L\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
        let content: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        let whole = [head.as_bytes(), &content, b"\r\n--L--\r\n"].concat();
        let pieces: Vec<Bytes> = whole.chunks(60_000).map(Bytes::copy_from_slice).collect();
        let (body, unparsed) = form(stream::iter(pieces));
        let mut form = parser(body).await;
        let mut field = form.next_field().await.unwrap().unwrap();
        let mut received = Vec::new();
        unparsed.reset();
        while let Some(chunk) = field.chunk().await.unwrap() {
            unparsed.reset();
            received.extend_from_slice(&chunk);
        }
        drop(field);
        assert!(received == content);
        assert!(form.next_field().await.unwrap().is_none());
    }

    #[test]
    fn only_time_spent_waiting_for_a_slow_client_counts() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        // Work between two reads does not count.
        assert!(!pace.received(after(1000), 1));
        pace.waits(after(1000));
        assert!(!pace.received(after(1009), 1));
        pace.waits(after(1009));
        assert!(!pace.received(after(1011), 2 * MIN_RATE as usize));
        pace.waits(after(1011));
        assert!(pace.received(after(1014), 1));
    }
}
