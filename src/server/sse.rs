//! Server-sent events: pieces of sequences become chunks, then usage where it was asked for, then
//! `[DONE]`.

use std::collections::VecDeque;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt as _};

use super::error::ApiError;
use super::generate::{Piece, Sequence, Usage, merge};

type EventResult = Result<Event, axum::Error>;

/// How an endpoint writes its chunks.
pub trait Chunks: Send + 'static {
    /// The events that a piece of the sequence at `index` becomes.
    fn of_piece(&mut self, index: usize, piece: Piece) -> Vec<EventResult>;

    /// The chunk before the end that reports usage, if the client asked for it.
    fn of_usage(&self, usage: Usage) -> Option<EventResult>;
}

/// Streams the sequences. `usage` has counted the prompts.
pub fn respond(sequences: Vec<Sequence>, chunks: impl Chunks, usage: Usage) -> Response {
    let events = Events {
        pieces: merge(sequences),
        chunks,
        usage,
        pending: VecDeque::new(),
        ended: false,
    };
    let events = stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((event, events))
    });
    // A proxy that buffers would hold tokens back.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    let sse = Sse::new(events).keep_alive(KeepAlive::default());
    ([unbuffered], sse).into_response()
}

struct Events<P, C> {
    pieces: P,
    chunks: C,
    usage: Usage,
    pending: VecDeque<EventResult>,
    ended: bool,
}

impl<P, C> Events<P, C>
where
    P: Stream<Item = (usize, Result<Piece, ApiError>)> + Unpin,
    C: Chunks,
{
    async fn next(&mut self) -> Option<EventResult> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.pieces.next().await {
                Some((index, Ok(piece))) => {
                    self.usage.add(piece.tokens);
                    self.pending.extend(self.chunks.of_piece(index, piece));
                }
                Some((_, Err(error))) => {
                    self.pending
                        .push_back(Event::default().json_data(error.body()));
                    self.end();
                }
                None => {
                    self.pending.extend(self.chunks.of_usage(self.usage));
                    self.end();
                }
            }
        }
    }

    fn end(&mut self) {
        self.pending.push_back(Ok(Event::default().data("[DONE]")));
        self.ended = true;
    }
}
