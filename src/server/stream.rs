//! Streamed responses, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt as _};

use super::error::ApiError;
use super::generate::{FanOut, TextDelta, Usage};
use super::protocol::{Facts, Piece, Protocol};

/// Streams the completions. `usage` already counts the prompts.
pub fn respond<P: Protocol>(
    completions: FanOut,
    mut protocol: P,
    facts: Facts,
    usage: Usage,
) -> Response {
    let pieces = Pieces {
        pending: protocol.begin(&facts, usage).into(),
        deltas: completions.deltas(),
        protocol,
        facts,
        usage,
        ended: false,
    };
    let pieces = stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.next().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    // Tells nginx not to buffer, which would delay tokens.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    let events = pieces.map(|piece| piece.map(|Piece(data)| Event::default().data(data)));
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    ([unbuffered], events).into_response()
}

/// The messages of one stream.
struct Pieces<S, P> {
    deltas: S,
    protocol: P,
    facts: Facts,
    usage: Usage,
    pending: VecDeque<Piece>,
    ended: bool,
}

impl<S, P> Pieces<S, P>
where
    S: Stream<Item = (usize, Result<TextDelta, ApiError>)> + Unpin,
    P: Protocol,
{
    async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.pending.pop_front() {
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            let delta = self.deltas.next().await;
            self.ended = !matches!(delta, Some((_, Ok(_))));
            let pieces = match delta {
                Some((index, Ok(delta))) => {
                    self.usage.add(&delta);
                    self.protocol.delta(&self.facts, index, delta)
                }
                Some((_, Err(error))) => self.protocol.failure(&self.facts, &error),
                None => self.protocol.end(&self.facts, self.usage),
            };
            self.pending.extend(pieces);
        }
    }
}
