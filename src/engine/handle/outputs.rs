//! Token streams: one per sequence, from the engine to the caller. What a caller has not read yet
//! is bounded, per stream and over all streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::shares::Place;
use crate::engine::request::{Output, SequenceError, StepResult, TokenLogprobs};

/// Unread bytes at which a stream is ended.
const STREAM_BYTES: usize = 1 << 20;

/// Unread bytes of all streams together, at which those are ended that do not keep up.
const TOTAL_BYTES: usize = 64 << 20;

/// Unread bytes of a stream that keeps up: it is not ended for what others do not read.
const KEPT_UP_BYTES: usize = 1 << 10;

/// Unread outputs of all streams.
#[derive(Debug, Default)]
pub struct Unread {
    bytes: AtomicUsize,
    ended: AtomicU64,
}

impl Unread {
    /// Bytes that wait to be read.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of streams that were ended because they were not read.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }
}

/// Unread outputs of one stream.
#[derive(Debug)]
struct UnreadOfStream {
    bytes: AtomicUsize,
    all: Arc<Unread>,
}

/// An output on its way, counted as unread until it is dropped.
#[derive(Debug)]
struct Queued {
    /// Taken when it is read.
    result: Option<StepResult>,
    bytes: usize,
    unread: Arc<UnreadOfStream>,
}

impl Queued {
    fn new(result: StepResult, bytes: usize, unread: &Arc<UnreadOfStream>) -> Self {
        unread.bytes.fetch_add(bytes, Ordering::Relaxed);
        unread.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self {
            result: Some(result),
            bytes,
            unread: Arc::clone(unread),
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.unread.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.unread
            .all
            .bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Creates a stream whose sequence holds `place` in the queue.
pub fn stream(place: Place, unread: &Arc<Unread>) -> (OutputSender, OutputStream) {
    let (outputs, receiver) = unbounded_channel();
    let unread = Arc::new(UnreadOfStream {
        bytes: AtomicUsize::new(0),
        all: Arc::clone(unread),
    });
    let sender = OutputSender {
        outputs,
        unread,
        _place: place,
    };
    (sender, OutputStream { outputs: receiver })
}

/// The engine's end of a token stream. It holds the sequence's place in the queue, so that the
/// place is free as soon as the engine is done with the sequence, read or unread.
#[derive(Debug)]
pub struct OutputSender {
    outputs: UnboundedSender<Queued>,
    unread: Arc<UnreadOfStream>,
    _place: Place,
}

/// Reason why an output was not sent; the sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The caller has dropped the stream.
    Closed,
    /// Too much of the stream is unread. [`SequenceError::Unread`] was sent instead.
    Unread,
}

impl OutputSender {
    /// Sends an output or an error.
    ///
    /// # Errors
    /// The caller has dropped the stream, or does not read it.
    pub fn send(&self, result: StepResult) -> Result<(), SendError> {
        let bytes = bytes_of(&result);
        if result.is_ok() && self.is_over(bytes) {
            self.unread.all.ended.fetch_add(1, Ordering::Relaxed);
            self.queue(Err(SequenceError::Unread), size_of::<Queued>())?;
            return Err(SendError::Unread);
        }
        self.queue(result, bytes)
    }

    /// Whether the caller has dropped the stream.
    pub fn is_closed(&self) -> bool {
        self.outputs.is_closed()
    }

    fn is_over(&self, more: usize) -> bool {
        let unread = self.unread.bytes.load(Ordering::Relaxed);
        let over_all = || self.unread.all.bytes() + more > TOTAL_BYTES;
        unread >= KEPT_UP_BYTES && (unread + more > STREAM_BYTES || over_all())
    }

    fn queue(&self, result: StepResult, bytes: usize) -> Result<(), SendError> {
        let queued = Queued::new(result, bytes, &self.unread);
        self.outputs.send(queued).map_err(|_| SendError::Closed)
    }
}

/// Bytes that an output takes while it waits.
fn bytes_of(result: &StepResult) -> usize {
    let heap = |output: &Output| {
        let top = |logprobs: &TokenLogprobs| logprobs.top.len() * size_of::<(u32, f32)>();
        let scored = |logprobs: &TokenLogprobs| size_of::<TokenLogprobs>() + top(logprobs);
        let prompt = output.prompt_logprobs.iter().flatten();
        let pooled = output
            .pooled
            .as_ref()
            .map_or(0, |vector| size_of_val(&vector[..]));
        output.logprobs.as_ref().map_or(0, top) + prompt.map(scored).sum::<usize>() + pooled
    };
    size_of::<Queued>() + result.as_ref().map_or(0, heap)
}

/// Token stream of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct OutputStream {
    outputs: UnboundedReceiver<Queued>,
}

impl OutputStream {
    /// Receives the next token, or the error that ended the sequence. Returns `None` after a token
    /// with a finish reason, or if the engine stopped.
    pub async fn recv(&mut self) -> Option<StepResult> {
        self.outputs.recv().await?.result.take()
    }

    /// [`Self::recv`] for threads outside a Tokio runtime.
    ///
    /// # Panics
    /// Inside a Tokio runtime.
    pub fn blocking_recv(&mut self) -> Option<StepResult> {
        self.outputs.blocking_recv()?.result.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::account::Account;
    use crate::engine::handle::shares::Shares;

    fn place() -> Place {
        let shares = Arc::new(Shares::new(1));
        shares.take(&Account::Group(None), 1).unwrap().remove(0)
    }

    fn output() -> StepResult {
        Ok(Output {
            token: 1,
            logprobs: None,
            finish: None,
            cached_tokens: None,
            pooled: None,
            prompt_logprobs: None,
        })
    }

    /// Sends until the stream is ended; returns the number of outputs sent.
    fn fill(sender: &OutputSender) -> usize {
        (0..).find(|_| sender.send(output()).is_err()).unwrap()
    }

    #[test]
    fn a_stream_that_nobody_reads_is_ended_with_an_error() {
        let unread = Arc::default();
        let (sender, mut stream) = stream(place(), &unread);
        let sent = fill(&sender);
        assert!(unread.bytes() <= STREAM_BYTES + size_of::<Queued>());
        assert_eq!(unread.ended(), 1);
        drop(sender);
        // A caller that comes back gets what was sent, and then the error.
        let outputs: Vec<_> = std::iter::from_fn(|| stream.blocking_recv()).collect();
        assert_eq!(outputs.len(), sent + 1);
        assert_eq!(outputs[sent], Err(SequenceError::Unread));
        assert_eq!(unread.bytes(), 0);
    }

    #[test]
    fn all_streams_together_are_bounded_and_those_that_are_read_go_on() {
        let unread = Arc::default();
        let streams: Vec<_> = (0..200).map(|_| stream(place(), &unread)).collect();
        let sent: Vec<usize> = streams.iter().map(|(sender, _)| fill(sender)).collect();
        let bound = TOTAL_BYTES + 200 * (KEPT_UP_BYTES + 2 * size_of::<Queued>());
        assert!(unread.bytes() <= bound, "{}", unread.bytes());
        assert!(sent[0] > sent[199] && sent[199] > 0);
        let (sender, mut read) = stream(place(), &unread);
        for _ in 0..100_000 {
            assert_eq!(sender.send(output()), Ok(()));
            read.blocking_recv().unwrap().unwrap();
        }
        drop(streams);
        assert_eq!(unread.bytes(), 0);
    }

    #[test]
    fn a_large_first_output_is_always_sent() {
        let (sender, mut stream) = stream(place(), &Arc::default());
        let score = TokenLogprobs {
            chosen: 0.0,
            rank: 1,
            top: Vec::new(),
        };
        let scores = Output {
            prompt_logprobs: Some(vec![score; STREAM_BYTES / size_of::<TokenLogprobs>()]),
            ..output().unwrap()
        };
        assert_eq!(sender.send(Ok(scores)), Ok(()));
        assert_eq!(sender.send(output()), Err(SendError::Unread));
        assert!(stream.blocking_recv().unwrap().is_ok());
    }
}
