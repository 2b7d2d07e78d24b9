//! The stream of one client as hyper sees it: framed, checked, and with timeouts for what the
//! client sends.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::ListenOptions;
use super::connections::{Admitted, Exchange};
use super::framing::{Framing, Malformed, Position};
use super::half_close::HalfClosed;
use crate::metrics::ClientTimeout;
use crate::server::error::ApiError;

/// The stream of one client. A read fails if the client takes too long or violates HTTP; the
/// response to that, if one is possible, is then in the connection's `refusal`.
pub struct ClientIo<IO> {
    io: IO,
    admitted: Arc<Admitted>,
    options: Arc<ListenOptions>,
    framing: Framing,
    /// Whether the client has sent malformed input, which is not read further.
    malformed: bool,
    /// The error of a malformed body, until the handler that reads the body has it.
    body_error: Option<ApiError>,
    /// Arrival of the first byte of the current head.
    head_since: Instant,
    /// Since when a read has waited for the client.
    read_since: Option<Instant>,
    /// Time that reads have waited for the current body, and its bytes so far.
    body_waited: Duration,
    body_bytes: u64,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Watch over a client that sends no more, but may wait for its answer.
    half_closed: Option<HalfClosed>,
}

impl<IO> ClientIo<IO> {
    /// Wraps a stream.
    pub fn new(io: IO, admitted: Arc<Admitted>, options: Arc<ListenOptions>) -> Self {
        let head_since = admitted.connection().opened;
        Self {
            io,
            admitted,
            options,
            framing: Framing::default(),
            malformed: false,
            body_error: None,
            head_since,
            read_since: None,
            body_waited: Duration::ZERO,
            body_bytes: 0,
            sleep: None,
            half_closed: None,
        }
    }

    /// Whether the client has not sent the whole body of its request yet.
    pub fn is_in_body(&self) -> bool {
        self.framing.position() == Position::Body
    }

    /// The stream below.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Follows bytes that have arrived; returns how many of them to pass on.
    fn received(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        let before = self.framing.position();
        if let Some(since) = self.read_since.take() {
            self.body_waited += now - since;
        }
        let fed = self.framing.feed(bytes);
        let position = self.framing.position();
        match (before, position) {
            (Position::Body, Position::Body) => self.body_bytes += bytes.len() as u64,
            (_, Position::Body) => {
                self.body_waited = Duration::ZERO;
                self.body_bytes = 0;
            }
            (Position::Head, Position::Head) => {}
            // The first head began when the connection did.
            (_, Position::Head) if self.admitted.connection().state().reused => {
                self.head_since = now;
            }
            _ => {}
        }
        self.admitted.connection().state().position = position;
        match fed {
            Ok(()) => Ok(bytes.len()),
            Err(malformed) => self.refuse(malformed),
        }
    }

    fn refuse(&mut self, malformed: Malformed) -> io::Result<usize> {
        let Malformed { good, error } = malformed;
        tracing::debug!(%error, "a client violates HTTP");
        self.admitted.record(|series| series.malformed.inc());
        self.malformed = true;
        if self.framing.position() == Position::Body {
            // The handler of the request answers, once it has read what came before.
            self.body_error = Some(error);
        } else {
            self.admitted.connection().state().refusal = Some(error);
        }
        Ok(good)
    }

    /// Ends the reading after malformed input: with its error if it is in a body, else once all
    /// that came before it is answered; the flush of each response wakes the task for that.
    fn end(&mut self) -> Poll<io::Result<()>> {
        if let Some(error) = self.body_error.take() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        if self.admitted.connection().state().exchange != Exchange::None {
            return Poll::Pending;
        }
        let kind = io::ErrorKind::InvalidData;
        Poll::Ready(Err(io::Error::new(kind, "the request is refused")))
    }

    /// Whether an answer to a whole request is due.
    fn owes_answer(&self) -> bool {
        let position = self.framing.position();
        position != Position::Body && self.admitted.connection().state().exchange != Exchange::None
    }

    /// Waits for the client, but not longer than it may take.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        let read_since = *self.read_since.get_or_insert(now);
        loop {
            let Some((kind, deadline)) = self.deadline(read_since) else {
                return Poll::Pending;
            };
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(cx));
            let mut state = self.admitted.connection().state();
            if state.exchange == Exchange::Ended {
                // The client still reads the response: writes have their own timeout.
                state.since = Instant::now();
                continue;
            }
            if kind == ClientTimeout::Head && state.position == Position::Head {
                state.refusal = Some(ApiError::RequestTimeout("head"));
            }
            drop(state);
            self.admitted.timed_out(kind);
            let error = ApiError::RequestTimeout("body");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)));
        }
    }

    /// The time until which the client may send nothing more; `None` if it is not its turn.
    fn deadline(&self, read_since: Instant) -> Option<(ClientTimeout, Instant)> {
        let connection = self.admitted.connection();
        let state = connection.state();
        let options = &self.options;
        let turn = matches!(state.exchange, Exchange::None | Exchange::Ended);
        match state.position {
            Position::Body => {
                let pause = options.body_pause(self.body_bytes, self.body_waited);
                Some((ClientTimeout::Body, read_since + pause))
            }
            Position::Between if turn && state.reused => {
                Some((ClientTimeout::Idle, state.since + options.keep_alive))
            }
            Position::Between | Position::Head if turn => {
                let since = self.head_since.max(state.since);
                Some((ClientTimeout::Head, since + options.head_timeout))
            }
            _ => None,
        }
    }
}

impl<IO: AsyncWrite + Unpin> ClientIo<IO> {
    /// Hides the end of what a client sends until it has its answer, or turns out to be gone.
    fn outlast(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.admitted.connection().state();
        let (exchange, interim) = (state.exchange, state.interim);
        drop(state);
        match (exchange, &mut self.half_closed) {
            (Exchange::None, _) | (_, None) => Poll::Ready(Ok(())),
            (Exchange::Received, Some(watch)) => {
                let io = Pin::new(&mut self.io);
                watch.poll_gone(io, interim, cx).map(Err)
            }
            // The answer itself shows whether the client is there; its flush wakes the task.
            (Exchange::Answered | Exchange::Ended, Some(_)) => Poll::Pending,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientIo<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.malformed {
            return this.end();
        }
        if this.half_closed.is_some() {
            return this.outlast(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Pending => this.wait(cx),
            Poll::Ready(Ok(())) if buf.filled().len() == before && this.owes_answer() => {
                this.half_closed = Some(HalfClosed::new());
                this.admitted.connection().state().half_closed = true;
                this.outlast(cx)
            }
            Poll::Ready(Ok(())) => {
                let received = this.received(&buf.filled()[before..]);
                let good = *received.as_ref().unwrap_or(&0);
                buf.set_filled(before + good);
                match received {
                    Ok(0) if this.malformed => this.end(),
                    received => Poll::Ready(received.map(|_| ())),
                }
            }
            failed => failed,
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ClientIo<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        let mut state = this.admitted.connection().state();
        if state.exchange == Exchange::Ended {
            state.exchange = Exchange::None;
            state.since = Instant::now();
            state.reused = true;
            // The next read waits by another deadline.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.admitted.connection().state().refusal.is_some() {
            // The refusal is still to be written.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
