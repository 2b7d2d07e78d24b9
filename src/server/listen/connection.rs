//! One connection, from its acceptance to its end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Stage;
use super::client_io::ClientIo;
use super::connections::{Admitted, Connection, Exchange, Phase};
use super::endpoint::{Endpoint, reached};
use super::half_close::Comments;
use super::head::bad;
use super::http2;
use super::preface::Rewind;
use super::refuse::{linger, refuse};
use super::tls::Tls;
use super::write_timeout::WriteTimeout;
use crate::metrics::ClientTimeout;
use crate::server::error::ApiError;

/// Bytes that hyper buffers in each direction.
const BUFFER_BYTES: usize = 64 << 10;

impl Endpoint {
    /// Serves a connection until it ends.
    pub async fn serve(self: Arc<Self>, socket: TcpStream, peer: SocketAddr, admitted: Admitted) {
        // Each token is a small packet that must not wait for the next one.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
        }
        let admitted = Arc::new(admitted);
        let timeout = self.options.write_timeout;
        let io = WriteTimeout::new(socket, timeout, Arc::clone(&admitted));
        let Some(tls) = &self.tls else {
            return self.exchange(io, peer, admitted).await;
        };
        let mut stage = self.stage.clone();
        let connection = admitted.connection();
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(self.options.head_timeout, handshake(tls, io)) => {
                handshake
            }
            () = connection.evict.notified() => return,
            () = reached(&mut stage, Stage::Draining) => return,
        };
        match handshake {
            Ok(Ok(Some(io))) => self.exchange(io, peer, admitted).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => admitted.timed_out(ClientTimeout::Handshake),
        }
    }

    /// Serves requests in the version of HTTP that the client speaks.
    async fn exchange<IO>(self: Arc<Self>, io: IO, peer: SocketAddr, admitted: Arc<Admitted>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut io = Rewind::new(io);
        let mut stage = self.stage.clone();
        let connection = admitted.connection();
        let http2 = tokio::select! {
            found = tokio::time::timeout(self.options.head_timeout, io.speaks_http2()) => found,
            () = connection.evict.notified() => return,
            () = reached(&mut stage, Stage::Draining) => return,
        };
        match http2 {
            Ok(Ok(true)) => http2::serve(self, io, peer, admitted).await,
            Ok(Err(error)) => tracing::debug!(%error, "a connection broke off"),
            // What is missing after the timeout is told as HTTP/1.
            Ok(Ok(false)) | Err(_) => self.exchange_http1(io, peer, admitted).await,
        }
    }

    /// Serves requests until the client or the server ends the connection.
    async fn exchange_http1<IO>(self: Arc<Self>, io: IO, peer: SocketAddr, admitted: Arc<Admitted>)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let connection = admitted.connection();
        let io = ClientIo::new(io, Arc::clone(&admitted), Arc::clone(&self.options));
        let answer = service_fn(|mut request: axum::http::Request<Incoming>| {
            let mut state = connection.state();
            state.exchange = Exchange::Received;
            state.interim = request.version() >= Version::HTTP_11;
            drop(state);
            request.extensions_mut().insert(ConnectInfo(peer));
            self.answer_http1(request.map(Body::new), &admitted)
        });
        let mut http = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            // `ClientIo` has its own, which also tells a half-sent head from an idle connection.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(io), answer);
        let mut stage = self.stage.clone();
        let mut next = Stage::Draining;
        let mut answered = false;
        let ended_by = loop {
            tokio::select! {
                ended = Pin::new(&mut http) => {
                    match ended {
                        Ok(()) => answered = true,
                        Err(error) => tracing::debug!(%error, "a connection broke off"),
                    }
                    break connection.state().refusal.take();
                }
                () = connection.evict.notified() => {
                    if connection.must_leave() {
                        break None;
                    }
                }
                () = reached(&mut stage, next) => match (next, connection.phase()) {
                    (Stage::Draining, Phase::HalfSent) => break Some(ApiError::Draining),
                    (Stage::Draining, Phase::Running) => {
                        Pin::new(&mut http).graceful_shutdown();
                        next = Stage::Cut;
                    }
                    _ => break None,
                },
            }
        };
        let io = http.into_parts().io.into_inner();
        match ended_by {
            Some(error) => refuse(io.into_inner(), error).await,
            // A request that was answered before its whole body had arrived.
            None if answered && io.is_in_body() => linger(io.into_inner()).await,
            None => {}
        }
    }

    /// Answers a request over HTTP/1, and says so if the connection ends with it.
    async fn answer_http1(
        &self,
        request: Request,
        admitted: &Admitted,
    ) -> Result<Response<Tracked>, Infallible> {
        let connection = Arc::clone(admitted.connection());
        let mut response = self.answer(request, admitted, None).await;
        if *self.stage.borrow() >= Stage::Draining || connection.reserve {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        connection.state().exchange = Exchange::Answered;
        let kind = response.headers().get(header::CONTENT_TYPE);
        let events = kind.is_some_and(|kind| kind == "text/event-stream");
        Ok(response.map(|body| Tracked {
            body,
            connection,
            comments: events.then(Comments::default),
        }))
    }
}

/// Accepts a TLS session. `None` if the client speaks plain HTTP, which is answered.
async fn handshake(
    tls: &Tls,
    io: WriteTimeout<TcpStream>,
) -> io::Result<Option<TlsStream<WriteTimeout<TcpStream>>>> {
    /// First byte of each TLS handshake.
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    if io.get_ref().peek(&mut first).await? > 0 && first[0] != HANDSHAKE {
        let problem = "the client speaks plain HTTP to a TLS port; use https";
        refuse(io, bad(problem)).await;
        return Ok(None);
    }
    TlsAcceptor::from(tls.config()).accept(io).await.map(Some)
}

/// Body of a response over HTTP/1, whose end it notes.
struct Tracked {
    body: Body,
    connection: Arc<Connection>,
    /// Comments between its events, if it is a stream of events.
    comments: Option<Comments>,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        match (Pin::new(&mut this.body).poll_frame(cx), &mut this.comments) {
            (Poll::Pending, Some(comments)) if this.connection.state().half_closed => {
                comments.poll_next(cx).map(|comment| Some(Ok(comment)))
            }
            (polled, _) => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.connection.state().exchange = Exchange::Ended;
    }
}
