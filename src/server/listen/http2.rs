//! HTTP/2, by prior knowledge or by ALPN, under the limits that hold for HTTP/1.
//!
//! A connection carries many exchanges at once. Those beyond its first count as connections, so
//! that the limit on connections bounds the exchanges of all clients.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, Response, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::connections::{Admitted, Connection, Exchange, Place};
use super::endpoint::{Endpoint, reached};
use super::head::{MAX_HEAD_BYTES, MAX_HEADERS, bad};
use super::{ListenOptions, Stage};
use crate::metrics::ClientTimeout;
use crate::server::error::ApiError;

/// Most exchanges of one connection at once.
const MAX_STREAMS: u32 = 100;

/// Largest head that is read at all, in bytes; one above [`MAX_HEAD_BYTES`] is answered with the
/// reason.
const MAX_READ_HEAD_BYTES: u32 = 4 * MAX_HEAD_BYTES as u32;

/// Bytes that hyper buffers of each response.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Interval at which it is seen whether a connection has been idle for too long.
const TICK: Duration = Duration::from_millis(500);

/// Time for a client without an exchange to take note of the end of its connection.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves requests until the client or the server ends the connection.
pub async fn serve<IO>(endpoint: Arc<Endpoint>, io: IO, peer: SocketAddr, admitted: Arc<Admitted>)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams = Streams {
        timeout: endpoint.options.write_timeout,
        admitted: Arc::clone(&admitted),
    };
    let answer = {
        let (endpoint, admitted) = (Arc::clone(&endpoint), Arc::clone(&admitted));
        service_fn(move |request| {
            // Here, so that the exchange counts from its first moment.
            let place = admitted.begin_exchange();
            answer(
                Arc::clone(&endpoint),
                Arc::clone(&admitted),
                place,
                peer,
                request,
            )
        })
    };
    let mut http = pin!(
        http2::Builder::new(streams)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_READ_HEAD_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), answer)
    );
    let connection = admitted.connection();
    let mut stage = endpoint.stage.clone();
    let mut next = Stage::Draining;
    // Since when the client is told to leave.
    let mut leaving = None;
    loop {
        let now = Instant::now();
        if let Some(end) = idle_end(connection, &endpoint.options, leaving)
            && end <= now
        {
            if leaving.is_some() {
                return;
            }
            admitted.timed_out(match connection.state().reused {
                true => ClientTimeout::Idle,
                false => ClientTimeout::Head,
            });
            leaving = Some(now);
            http.as_mut().graceful_shutdown();
        }
        tokio::select! {
            ended = &mut http => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke off");
                }
                return;
            }
            () = connection.evict.notified() => {
                if connection.must_leave() {
                    return;
                }
            }
            () = reached(&mut stage, next) => {
                if next == Stage::Cut {
                    return;
                }
                next = Stage::Cut;
                leaving = Some(now);
                http.as_mut().graceful_shutdown();
            }
            // Exchanges begin and end while this waits.
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Time at which a connection ends, unless an exchange begins before; `None` during one.
fn idle_end(
    connection: &Connection,
    options: &ListenOptions,
    leaving: Option<Instant>,
) -> Option<Instant> {
    let state = connection.state();
    if state.exchange != Exchange::None {
        return None;
    }
    Some(match leaving {
        Some(leaving) => state.since.max(leaving) + FAREWELL,
        None if state.reused => state.since + options.keep_alive,
        None => connection.opened + options.head_timeout,
    })
}

/// Answers one request.
async fn answer(
    endpoint: Arc<Endpoint>,
    admitted: Arc<Admitted>,
    place: Option<Place>,
    peer: SocketAddr,
    request: axum::http::Request<Incoming>,
) -> Result<Response<StreamBody>, Infallible> {
    let refusal = match &place {
        Some(_) => check(&request).err(),
        None => {
            admitted.record(|series| series.refused.inc());
            Some(ApiError::TooManyConnections)
        }
    };
    let options = Arc::clone(&endpoint.options);
    let paced = Arc::clone(&admitted);
    let mut request: Request = request.map(|body| Body::new(PacedBody::new(body, options, paced)));
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = endpoint.answer(request, &admitted, refusal).await;
    Ok(response.map(|body| StreamBody {
        body,
        _place: place,
    }))
}

/// Checks a head by the limits of HTTP/1.
fn check(request: &axum::http::Request<Incoming>) -> Result<(), ApiError> {
    let headers = request.headers();
    if headers.len() > MAX_HEADERS {
        let limit = format!("{MAX_HEADERS} headers");
        return Err(ApiError::HeadTooLarge { limit });
    }
    if request.uri().to_string().len() + bytes(headers) > MAX_HEAD_BYTES {
        let limit = format!("{MAX_HEAD_BYTES} bytes");
        return Err(ApiError::HeadTooLarge { limit });
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    match (request.uri().authority(), hosts) {
        (None, 0) => Err(bad("neither `:authority` nor the header `Host` is given")),
        (_, 0 | 1) => Ok(()),
        _ => Err(bad("the header `Host` is given twice")),
    }
}

/// Size of headers as HTTP/1 would send them.
fn bytes(headers: &HeaderMap) -> usize {
    let bytes = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    headers.iter().map(bytes).sum()
}

/// Runs the exchanges of a connection as tasks.
#[derive(Clone)]
struct Streams {
    timeout: Duration,
    admitted: Arc<Admitted>,
}

tokio::task_local! {
    /// Progress of the response of this task.
    static PROGRESS: Cell<Progress>;
}

/// Progress of a response.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Number of pieces that were passed on.
    pieces: u64,
    /// Whether the last one waits for the client to read.
    waits_for_client: bool,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    /// Spawns an exchange, and drops it if the client does not read its response: that resets the
    /// stream, and leaves the others of the connection alone.
    fn execute(&self, exchange: F) {
        let Self { timeout, admitted } = self.clone();
        let watched = async move {
            let mut exchange = pin!(exchange);
            let mut stall: Option<(u64, Pin<Box<Sleep>>)> = None;
            poll_fn(|cx| {
                if exchange.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let progress = PROGRESS.with(Cell::get);
                if !progress.waits_for_client {
                    stall = None;
                    return Poll::Pending;
                }
                if stall
                    .as_ref()
                    .is_none_or(|(pieces, _)| *pieces != progress.pieces)
                {
                    stall = Some((progress.pieces, Box::pin(tokio::time::sleep(timeout))));
                }
                if let Some((_, sleep)) = &mut stall {
                    ready!(sleep.as_mut().poll(cx));
                }
                admitted.timed_out(ClientTimeout::Write);
                Poll::Ready(())
            })
            .await;
        };
        tokio::spawn(PROGRESS.scope(Cell::default(), watched));
    }
}

/// Body of a response, which notes its progress and holds the place of its exchange.
struct StreamBody {
    body: Body,
    _place: Option<Place>,
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.get_mut().body).poll_frame(cx);
        // Outside of a task of `Streams`, nobody watches.
        let _ = PROGRESS.try_with(|progress| {
            let waits_for_client = matches!(polled, Poll::Ready(Some(Ok(_))));
            let pieces = progress.get().pieces + 1;
            progress.set(Progress {
                pieces,
                waits_for_client,
            });
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Body of a request, which fails if the client pauses for too long or sends too slowly.
struct PacedBody {
    body: Incoming,
    options: Arc<ListenOptions>,
    admitted: Arc<Admitted>,
    /// Since when a read has waited, and for how long the earlier ones did.
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
    sleep: Pin<Box<Sleep>>,
}

impl PacedBody {
    fn new(body: Incoming, options: Arc<ListenOptions>, admitted: Arc<Admitted>) -> Self {
        Self {
            body,
            options,
            admitted,
            since: None,
            waited: Duration::ZERO,
            bytes: 0,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let now = Instant::now();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if let Some(since) = this.since.take() {
                this.waited += now - since;
            }
            if let Some(Ok(frame)) = &frame {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        let since = *this.since.get_or_insert(now);
        let pause = this.options.body_pause(this.bytes, this.waited);
        this.sleep.as_mut().reset(since + pause);
        ready!(this.sleep.as_mut().poll(cx));
        this.admitted.timed_out(ClientTimeout::Body);
        let error = ApiError::RequestTimeout("body");
        let error = io::Error::new(io::ErrorKind::TimedOut, error);
        Poll::Ready(Some(Err(axum::Error::new(error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
