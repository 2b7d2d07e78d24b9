//! Channel between the engine's thread and its callers: a cheap handle for callers, an inbox for
//! the thread, and one token stream per request.

mod outputs;
mod pulse;
mod shares;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub use outputs::{OutputSender, OutputStream, SendError};
use outputs::{Unread, stream};
use pulse::{Phase, Pulse};
use shares::{Place, Refused, Shares};
use tokio::sync::oneshot;

use super::account::Account;
use super::request::Request;
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
    /// Numbers of a hidden state, and so of a pooled vector.
    pub hidden_size: usize,
}

/// Command to the engine's thread.
#[derive(Debug)]
pub enum Command {
    /// Run a request.
    Submit {
        /// The request.
        request: Box<Request>,
        /// Stream that the tokens are sent to, with the request's place in the queue. If the
        /// caller closes it, the request is cancelled.
        outputs: OutputSender,
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
    #[error("the engine's queue is full; retry in {retry_after} s")]
    QueueFull {
        /// Seconds until there is probably room.
        retry_after: u64,
    },
    #[error(
        "this tenant or ticket holds its share of the engine's queue; retry in {retry_after} s"
    )]
    ShareFull {
        /// Seconds until there is probably room.
        retry_after: u64,
    },
    #[error("the engine has stopped")]
    Stopped,
}

impl From<Refused> for SubmitError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full { retry_after } => Self::QueueFull { retry_after },
            Refused::Share { retry_after } => Self::ShareFull { retry_after },
        }
    }
}

/// Creates both ends of the channel. At most `capacity` requests, running and waiting together, are
/// admitted at once.
pub fn channel(limits: Limits, capacity: usize) -> (EngineHandle, EngineInbox) {
    let (commands, receiver) = mpsc::channel();
    let shared = Arc::new(Shared {
        commands,
        limits,
        shares: Arc::new(Shares::new(capacity)),
        unread: Arc::default(),
        pulse: Arc::new(Pulse::new()),
    });
    let inbox = EngineInbox {
        commands: receiver,
        unread: Arc::clone(&shared.unread),
        pulse: Arc::clone(&shared.pulse),
    };
    (EngineHandle(shared), inbox)
}

/// Handle to the engine; clones share one channel.
#[derive(Clone, Debug)]
pub struct EngineHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    limits: Limits,
    shares: Arc<Shares>,
    unread: Arc<Unread>,
    pulse: Arc<Pulse>,
}

impl EngineHandle {
    /// Submits a request.
    ///
    /// # Errors
    /// The queue or the account's share of it is full, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        let mut streams = self.submit_all(vec![request])?;
        streams.pop().ok_or(SubmitError::Stopped)
    }

    /// Submits requests of one account, or none of them if not all can be admitted. The account is
    /// the first request's.
    ///
    /// # Errors
    /// The queue or the account's share of it has no room for all, or the engine has stopped.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<OutputStream>, SubmitError> {
        if self.is_stopped() {
            return Err(SubmitError::Stopped);
        }
        let Some(first) = requests.first() else {
            return Ok(Vec::new());
        };
        let places = self.0.shares.take(&Account::of(first), requests.len())?;
        let pairs = requests.into_iter().zip(places);
        pairs
            .map(|(request, place)| self.send(request, place))
            .collect()
    }

    /// Limits of a request.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Maximum number of requests admitted at once.
    pub fn capacity(&self) -> usize {
        self.0.shares.capacity()
    }

    /// Maximum number of requests of one account admitted at once: the rest of the queue is kept
    /// for others.
    pub fn largest_share(&self) -> usize {
        self.0.shares.largest()
    }

    /// Number of admitted requests whose sequences have not ended yet.
    pub fn admitted(&self) -> usize {
        self.0.shares.taken()
    }

    /// Bytes of outputs that callers have not read yet.
    pub fn unread_bytes(&self) -> usize {
        self.0.unread.bytes()
    }

    /// Whether the engine's thread takes commands: false while it starts and once it has stopped.
    pub fn is_running(&self) -> bool {
        self.0.pulse.phase() == Phase::Running
    }

    /// Whether the engine's thread has ended.
    pub fn is_stopped(&self) -> bool {
        self.0.pulse.phase() >= Phase::Stopped
    }

    /// Whether the engine's thread has ended by a panic.
    pub fn has_failed(&self) -> bool {
        self.0.pulse.phase() == Phase::Failed
    }

    /// Waits until the engine's thread has ended.
    pub async fn ended(&self) {
        self.0.pulse.ended().await;
    }

    /// Time that the engine's thread has been inside its current step; zero while it is idle.
    pub fn in_step_for(&self) -> Duration {
        self.0.pulse.working_for()
    }

    /// Digest of the resident parameters of the bare base; `None` if the engine has stopped. One
    /// computation answers all calls that are made while it goes on.
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

    fn send(&self, request: Request, place: Place) -> Result<OutputStream, SubmitError> {
        let (outputs, stream) = stream(place, &self.0.unread);
        let command = Command::Submit {
            request: Box::new(request),
            outputs,
            arrived: Instant::now(),
        };
        let sent = self.0.commands.send(command);
        sent.map_err(|_| SubmitError::Stopped)?;
        Ok(stream)
    }
}

/// The engine's end of the channel. Its first use marks the engine as running, dropping it marks
/// the engine as stopped, or as failed if its thread panics.
#[derive(Debug)]
pub struct EngineInbox {
    commands: mpsc::Receiver<Command>,
    unread: Arc<Unread>,
    pulse: Arc<Pulse>,
}

impl EngineInbox {
    /// Waits for a command; `None` once all handles are dropped.
    pub fn recv(&self) -> Option<Command> {
        self.pulse.waits();
        let command = self.commands.recv().ok();
        self.pulse.works();
        command
    }

    /// The next command, if there is one already.
    pub fn try_recv(&self) -> Option<Command> {
        self.pulse.works();
        self.commands.try_recv().ok()
    }

    /// Number of streams that were ended so far because their caller did not read them.
    pub fn unread_ended(&self) -> u64 {
        self.unread.ended()
    }
}

impl Drop for EngineInbox {
    fn drop(&mut self) {
        self.pulse.ends(if std::thread::panicking() {
            Phase::Failed
        } else {
            Phase::Stopped
        });
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
            hidden_size: 8,
        };
        channel(limits, capacity)
    }

    fn is_full(result: Result<impl Sized, SubmitError>) -> bool {
        matches!(result, Err(SubmitError::QueueFull { retry_after: 1 }))
    }

    #[test]
    fn the_engine_frees_the_place_of_a_stream_that_nobody_reads() {
        let (handle, inbox) = pair(1);
        let stream = handle.submit(request()).unwrap();
        assert!(is_full(handle.submit(request())));
        let Some(Command::Submit { outputs, .. }) = inbox.recv() else {
            panic!("the command was lost");
        };
        drop(outputs);
        assert_eq!(handle.admitted(), 0);
        assert!(handle.submit(request()).is_ok());
        drop(stream);
    }

    #[test]
    fn a_dropped_stream_closes_the_engines_sender() {
        let (handle, inbox) = pair(1);
        let stream = handle.submit(request()).unwrap();
        let Some(Command::Submit { outputs, .. }) = inbox.recv() else {
            panic!("the command was lost");
        };
        assert!(!outputs.is_closed());
        drop(stream);
        assert!(outputs.is_closed());
    }

    #[test]
    fn a_step_is_timed_and_a_wait_is_not() {
        let (handle, inbox) = pair(1);
        assert_eq!(handle.in_step_for(), Duration::ZERO);
        assert!(inbox.try_recv().is_none());
        std::thread::sleep(Duration::from_millis(20));
        assert!(handle.in_step_for() >= Duration::from_millis(15));
        let waiting = std::thread::spawn(move || inbox.recv());
        while handle.in_step_for() > Duration::ZERO {
            std::thread::yield_now();
        }
        handle.shutdown();
        assert!(waiting.join().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_panic_of_the_engines_thread_ends_streams_and_is_told_from_a_shutdown() {
        let (handle, inbox) = pair(1);
        let mut stream = handle.submit(request()).unwrap();
        let engine = std::thread::spawn(move || {
            let _command = inbox.recv();
            panic!("as a test wants");
        });
        handle.ended().await;
        assert!(engine.join().is_err() && handle.is_stopped() && handle.has_failed());
        assert_eq!(stream.recv().await, None);
        assert_eq!(handle.submit(request()).unwrap_err(), SubmitError::Stopped);
    }

    #[test]
    fn requests_are_admitted_together_or_not_at_all() {
        let (handle, inbox) = pair(3);
        let requests = |n| (0..n).map(|_| request()).collect();
        assert!(is_full(handle.submit_all(requests(4))));
        assert!(inbox.try_recv().is_none());
        assert_eq!(handle.submit_all(requests(3)).unwrap().len(), 3);
        assert_eq!(handle.admitted(), 3);
    }

    #[tokio::test]
    async fn a_stopped_engine_refuses_requests() {
        let (handle, inbox) = pair(1);
        assert!(!handle.is_running() && !handle.is_stopped());
        assert!(inbox.try_recv().is_none());
        assert!(handle.is_running());
        drop(inbox);
        assert!(handle.is_stopped() && !handle.has_failed());
        assert_eq!(handle.submit(request()).unwrap_err(), SubmitError::Stopped);
        assert_eq!(handle.base_digest().await, None);
    }
}
