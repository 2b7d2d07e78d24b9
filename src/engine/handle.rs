//! Channel between the engine's thread and its callers: a cheap handle for callers, an inbox for
//! the thread, and one token stream per request.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::request::{Request, StepResult};
use crate::ticket::Digest;

/// Limits of a request; fixed for the life of the engine.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of tokens of prompt and output together.
    pub max_model_len: usize,
    /// Number of token ids; each id is below it.
    pub vocab_size: usize,
    /// Maximum number of alternatives per token that a request may ask for.
    pub max_logprobs: usize,
}

/// Command to the engine's thread.
#[derive(Debug)]
pub enum Command {
    /// Run a request.
    Submit {
        /// The request.
        request: Box<Request>,
        /// Channel that the tokens are sent to; closing it cancels the request.
        outputs: UnboundedSender<StepResult>,
        /// Time of submission.
        arrived: Instant,
    },
    /// Revert the applied ticket and answer with the digest of the resident parameters.
    BaseDigest(oneshot::Sender<Digest>),
    /// End the thread and drop all unfinished sequences.
    Shutdown,
}

/// Reason why a request was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the engine's queue is full")]
    QueueFull,
    #[error("the engine has stopped")]
    Stopped,
}

const STARTING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPED: u8 = 2;

/// Creates both ends of the channel. At most `capacity` requests, running and waiting together, are
/// admitted at once.
pub fn channel(limits: Limits, capacity: usize) -> (EngineHandle, EngineInbox) {
    let (commands, receiver) = mpsc::channel();
    let capacity = capacity.min(Semaphore::MAX_PERMITS);
    let shared = Arc::new(Shared {
        commands,
        limits,
        capacity,
        permits: Arc::new(Semaphore::new(capacity)),
        phase: Arc::new(AtomicU8::new(STARTING)),
    });
    let phase = shared.phase.clone();
    let commands = receiver;
    (EngineHandle(shared), EngineInbox { commands, phase })
}

/// Handle to the engine; clones share one channel.
#[derive(Clone, Debug)]
pub struct EngineHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    limits: Limits,
    capacity: usize,
    permits: Arc<Semaphore>,
    phase: Arc<AtomicU8>,
}

impl EngineHandle {
    /// Submits a request.
    ///
    /// # Errors
    /// The queue is full, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        let permit = self.admit(1)?;
        self.send(request, permit)
    }

    /// Submits all requests, or none if not all of them can be admitted.
    ///
    /// # Errors
    /// The queue has no room for all, or the engine has stopped.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<OutputStream>, SubmitError> {
        let mut permits = self.admit(requests.len())?;
        let submit_one = |request| {
            let permit = permits.split(1).ok_or(SubmitError::QueueFull)?;
            self.send(request, permit)
        };
        requests.into_iter().map(submit_one).collect()
    }

    /// Limits of a request.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Maximum number of requests admitted at once.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Whether the engine's thread takes commands: false while it starts and once it has stopped.
    pub fn is_running(&self) -> bool {
        self.0.phase.load(Ordering::Acquire) == RUNNING
    }

    /// Whether the engine's thread has ended.
    pub fn is_stopped(&self) -> bool {
        self.0.phase.load(Ordering::Acquire) == STOPPED
    }

    /// Digest of the resident parameters, after reverting the applied ticket; `None` if the engine
    /// has stopped.
    pub async fn base_digest(&self) -> Option<Digest> {
        let (answer, digest) = oneshot::channel();
        self.0.commands.send(Command::BaseDigest(answer)).ok()?;
        digest.await.ok()
    }

    /// Asks the engine's thread to end; open streams end without a finish reason.
    pub fn shutdown(&self) {
        // Sending fails only if the engine has stopped already.
        let _ = self.0.commands.send(Command::Shutdown);
    }

    fn admit(&self, requests: usize) -> Result<OwnedSemaphorePermit, SubmitError> {
        if self.is_stopped() {
            return Err(SubmitError::Stopped);
        }
        let requests = u32::try_from(requests).map_err(|_| SubmitError::QueueFull)?;
        let permits = self.0.permits.clone().try_acquire_many_owned(requests);
        permits.map_err(|_| SubmitError::QueueFull)
    }

    fn send(
        &self,
        request: Request,
        permit: OwnedSemaphorePermit,
    ) -> Result<OutputStream, SubmitError> {
        let (outputs, receiver) = unbounded_channel();
        let command = Command::Submit {
            request: Box::new(request),
            outputs,
            arrived: Instant::now(),
        };
        let sent = self.0.commands.send(command);
        sent.map_err(|_| SubmitError::Stopped)?;
        Ok(OutputStream {
            outputs: receiver,
            _permit: permit,
        })
    }
}

/// Token stream of one request. Dropping it cancels the request and frees its place in the queue.
#[derive(Debug)]
pub struct OutputStream {
    outputs: UnboundedReceiver<StepResult>,
    _permit: OwnedSemaphorePermit,
}

impl OutputStream {
    /// Receives the next token, or the error that ended the sequence. Returns `None` after a token
    /// with a finish reason, or if the engine stopped.
    pub async fn recv(&mut self) -> Option<StepResult> {
        self.outputs.recv().await
    }

    /// [`Self::recv`] for threads outside a Tokio runtime.
    ///
    /// # Panics
    /// Inside a Tokio runtime.
    pub fn blocking_recv(&mut self) -> Option<StepResult> {
        self.outputs.blocking_recv()
    }
}

/// The engine's end of the channel. Its first use marks the engine as running, dropping it marks
/// the engine as stopped.
#[derive(Debug)]
pub struct EngineInbox {
    commands: mpsc::Receiver<Command>,
    phase: Arc<AtomicU8>,
}

impl EngineInbox {
    /// Waits for a command; `None` once all handles are dropped.
    pub fn recv(&self) -> Option<Command> {
        self.phase.store(RUNNING, Ordering::Release);
        self.commands.recv().ok()
    }

    /// The next command, if there is one already.
    pub fn try_recv(&self) -> Option<Command> {
        self.phase.store(RUNNING, Ordering::Release);
        self.commands.try_recv().ok()
    }
}

impl Drop for EngineInbox {
    fn drop(&mut self) {
        self.phase.store(STOPPED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            prompt: vec![1],
            ..Request::default()
        }
    }

    fn pair(capacity: usize) -> (EngineHandle, EngineInbox) {
        let limits = Limits {
            max_model_len: 8,
            vocab_size: 8,
            max_logprobs: 0,
        };
        channel(limits, capacity)
    }

    #[test]
    fn a_dropped_stream_frees_its_place_and_closes_the_engines_sender() {
        let (handle, inbox) = pair(1);
        let stream = handle.submit(request()).unwrap();
        assert_eq!(
            handle.submit(request()).unwrap_err(),
            SubmitError::QueueFull
        );
        let Some(Command::Submit { outputs, .. }) = inbox.recv() else {
            panic!("the command was lost");
        };
        assert!(!outputs.is_closed());
        drop(stream);
        assert!(outputs.is_closed());
        assert!(handle.submit(request()).is_ok());
    }

    #[test]
    fn requests_are_admitted_together_or_not_at_all() {
        let (handle, inbox) = pair(3);
        let requests = |n| (0..n).map(|_| request()).collect();
        let refused = handle.submit_all(requests(4)).unwrap_err();
        assert_eq!(refused, SubmitError::QueueFull);
        assert!(inbox.try_recv().is_none());
        assert_eq!(handle.submit_all(requests(3)).unwrap().len(), 3);
        assert!(handle.submit_all(requests(3)).is_ok());
    }

    #[tokio::test]
    async fn a_stopped_engine_refuses_requests() {
        let (handle, inbox) = pair(1);
        assert!(!handle.is_running() && !handle.is_stopped());
        assert!(inbox.try_recv().is_none());
        assert!(handle.is_running());
        drop(inbox);
        assert!(handle.is_stopped());
        assert_eq!(handle.submit(request()).unwrap_err(), SubmitError::Stopped);
        assert_eq!(handle.base_digest().await, None);
    }
}
