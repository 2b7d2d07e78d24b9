//! Server-sent events: one or more chunks per delta, then usage if requested, then `[DONE]`.

use std::collections::VecDeque;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt as _};

use super::error::ApiError;
use super::generate::{Completion, TextDelta, Usage, merge};

/// An event, or the error of its serialisation.
pub type EventResult = Result<Event, axum::Error>;

/// Serialises the chunks of one response.
pub trait ChunkWriter: Send + 'static {
    /// Events for a delta of the completion at `index`.
    fn delta(&mut self, index: usize, delta: TextDelta) -> Vec<EventResult>;

    /// The usage chunk at the end of the stream; `None` unless requested.
    fn usage(&self, usage: Usage) -> Option<EventResult>;
}

/// Streams the completions. `usage` already counts the prompts.
pub fn respond(completions: Vec<Completion>, writer: impl ChunkWriter, usage: Usage) -> Response {
    let events = Events {
        deltas: merge(completions),
        writer,
        usage,
        pending: VecDeque::new(),
        ended: false,
    };
    let events = stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((event, events))
    });
    // Tells nginx not to buffer, which would delay tokens.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    let sse = Sse::new(events).keep_alive(KeepAlive::default());
    ([unbuffered], sse).into_response()
}

struct Events<S, W> {
    deltas: S,
    writer: W,
    usage: Usage,
    pending: VecDeque<EventResult>,
    ended: bool,
}

impl<S, W> Events<S, W>
where
    S: Stream<Item = (usize, Result<TextDelta, ApiError>)> + Unpin,
    W: ChunkWriter,
{
    async fn next(&mut self) -> Option<EventResult> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.deltas.next().await {
                Some((index, Ok(delta))) => {
                    self.usage.add(&delta);
                    self.pending.extend(self.writer.delta(index, delta));
                }
                Some((_, Err(error))) => {
                    self.pending
                        .push_back(Event::default().json_data(error.body()));
                    self.end();
                }
                None => {
                    self.pending.extend(self.writer.usage(self.usage));
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
