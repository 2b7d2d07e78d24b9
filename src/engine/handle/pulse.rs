//! Signs of life of the engine's thread.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Phase of the engine's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It takes no commands yet.
    Starting,
    /// It takes commands.
    Running,
    /// It has ended.
    Stopped,
    /// It has ended by a panic.
    Failed,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Starting, Self::Running, Self::Stopped, Self::Failed];
}

/// The phase of the engine's thread, and the time since it last asked for commands.
#[derive(Debug)]
pub struct Pulse {
    origin: Instant,
    phase: AtomicU8,
    /// Milliseconds after `origin`, plus 1, of the last sign of life; 0 while it waits.
    working_since: AtomicU64,
    ended: Notify,
}

impl Pulse {
    /// The pulse of a thread that starts now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            phase: AtomicU8::new(Phase::Starting as u8),
            working_since: AtomicU64::new(0),
            ended: Notify::new(),
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Time since the thread last took a command or looked for one; zero while it waits for one.
    pub fn working_for(&self) -> Duration {
        match self.working_since.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => {
                let since = Duration::from_millis(since - 1);
                self.origin.elapsed().saturating_sub(since)
            }
        }
    }

    /// Records that the thread begins to work.
    pub fn works(&self) {
        let now = self.origin.elapsed().as_millis() as u64;
        self.working_since.store(now + 1, Ordering::Release);
        self.phase.store(Phase::Running as u8, Ordering::Release);
    }

    /// Records that the thread begins to wait.
    pub fn waits(&self) {
        self.working_since.store(0, Ordering::Release);
        self.phase.store(Phase::Running as u8, Ordering::Release);
    }

    /// Records the end of the thread.
    pub fn ends(&self, phase: Phase) {
        self.working_since.store(0, Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Waits for the end of the thread.
    pub async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.phase() >= Phase::Stopped {
                return;
            }
            ended.await;
        }
    }
}
