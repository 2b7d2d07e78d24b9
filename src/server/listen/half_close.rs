//! Clients that have ended their side of a connection, and whether they still wait for the answer.
//!
//! A client that shuts down its sending side after a request and one that has gone look alike until
//! something is sent to them: the system of the latter answers with a reset. An answer in progress
//! is sent anyway. Before it begins, interim responses are, and comments between its events:
//! clients skip those.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::Frame;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

/// Time before the first interim response; most answers begin sooner. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Time between two looks at the connection, within which a reset arrives.
const LOOK: Duration = Duration::from_millis(250);

/// What a client of events ignores.
const COMMENT: &[u8] = b": waiting\n\n";

const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Watch over a client that sends no more.
pub struct HalfClosed {
    look: Pin<Box<Sleep>>,
    probe_at: Instant,
    pause: Duration,
}

impl HalfClosed {
    /// Begins the watch.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            look: Box::pin(tokio::time::sleep_until(now + LOOK)),
            probe_at: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        }
    }

    /// Watches until the client turns out to be gone. `may_probe` says whether an interim response
    /// may be sent now.
    pub fn poll_gone(
        &mut self,
        mut io: Pin<&mut impl AsyncWrite>,
        may_probe: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            let now = Instant::now();
            self.look.as_mut().reset(now + LOOK);
            let probe = may_probe && now >= self.probe_at;
            // A write of nothing fails, too, once the connection is reset.
            let bytes = if probe { INTERIM } else { &[] };
            match io.as_mut().poll_write(cx, bytes) {
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                // A part of an interim response would garble the answer. It fits a buffer that has
                // been flushed.
                Poll::Ready(Ok(written)) if written < bytes.len() => {
                    return Poll::Ready(io::ErrorKind::WriteZero.into());
                }
                Poll::Ready(Ok(_)) if probe => {
                    self.pause *= 2;
                    self.probe_at = now + self.pause;
                }
                Poll::Ready(Ok(_)) | Poll::Pending => {}
            }
            if let Poll::Ready(Err(error)) = io.as_mut().poll_flush(cx) {
                return Poll::Ready(error);
            }
        }
    }
}

/// Comments for a client of events that has ended its side, while it waits for an event.
#[derive(Default)]
pub struct Comments(Option<Pin<Box<Sleep>>>);

impl Comments {
    /// The next comment, after a pause.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        let begin = || Box::pin(tokio::time::sleep(FIRST_PAUSE));
        ready!(self.0.get_or_insert_with(begin).as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Frame::data(Bytes::from_static(COMMENT)))
    }
}
