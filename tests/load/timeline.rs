//! What an alias may have pointed at, and when, as its only writer knows it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// State of an alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing has this name.
    Absent,
    /// The content with this number.
    Content(usize),
}

struct Span {
    state: State,
    from: Instant,
    to: Option<Instant>,
}

/// The history of one alias. A change is possible from the moment that it is sent, and certain once
/// it is acknowledged.
pub struct Timeline(Mutex<Vec<Span>>);

impl Timeline {
    /// An alias that is in this state from now on.
    pub fn starting(state: State) -> Self {
        let from = Instant::now();
        let to = None;
        Self(Mutex::new(vec![Span { state, from, to }]))
    }

    /// The state after the last change.
    pub fn current(&self) -> State {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans[spans.len() - 1].state
    }

    /// Records that a change to `state` is about to be sent.
    pub fn sending(&self, state: State) {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = Instant::now();
        let to = None;
        spans.push(Span { state, from, to });
    }

    /// Records that the last change was acknowledged.
    pub fn acknowledged(&self) {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = spans.len() - 1;
        let now = Instant::now();
        for earlier in spans[..last].iter_mut().filter(|span| span.to.is_none()) {
            earlier.to = Some(now);
        }
    }

    /// The states that a request may have met that was sent at `sent`, and whose response began
    /// before `begun`.
    pub fn possible(&self, sent: Instant, begun: Instant) -> Vec<State> {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let met = spans
            .iter()
            .filter(|span| span.from <= begun && span.to.is_none_or(|to| to >= sent));
        let mut states: Vec<State> = Vec::new();
        for span in met {
            if !states.contains(&span.state) {
                states.push(span.state);
            }
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_possible_when_sent_and_certain_when_acknowledged() {
        let (old, new) = (State::Content(1), State::Content(2));
        let timeline = Timeline::starting(old);
        let before = Instant::now();
        assert_eq!(timeline.possible(before, Instant::now()), [old]);
        timeline.sending(new);
        let between = Instant::now();
        assert_eq!(timeline.possible(between, Instant::now()), [old, new]);
        timeline.acknowledged();
        let after = Instant::now();
        assert_eq!(timeline.possible(after, Instant::now()), [new]);
        assert_eq!(timeline.possible(before, after), [old, new]);
        assert_eq!(timeline.current(), new);
    }
}
