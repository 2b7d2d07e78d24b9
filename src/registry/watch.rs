//! The thread that keeps a registry and its folder in step: it scans the folder when something
//! changes there, writes the index, and looks whether a full disk has room again.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{Event, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::scan::Unsettled;
use super::{Generation, Registry};

/// From the first event to the scan, so that a burst of events costs one scan.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// From one scan to the next while a file is being written.
const SETTLE: Duration = Duration::from_millis(500);
/// From one scan to the next if the system reports no changes.
const POLL: Duration = Duration::from_secs(2);
/// The same if it does: a network file system does not report what other machines write.
const REASSURE: Duration = Duration::from_secs(30);
/// How often the index is written, and a folder in trouble is probed.
const CHORES: Duration = Duration::from_secs(5);

/// Called with each ticket that is withdrawn because its file is gone.
type Withdrawn = Box<dyn Fn(&Generation) + Send>;

/// The running thread; it writes the index and ends when this is dropped.
pub struct FolderWatch {
    sender: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Changed,
    Stop,
}

impl FolderWatch {
    /// Starts the thread. Without `watch`, the folder is not scanned.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        registry: Arc<Registry>,
        watch: bool,
        withdrawn: impl Fn(&Generation) + Send + 'static,
    ) -> io::Result<Self> {
        registry.watched.store(watch, Ordering::Relaxed);
        // One message suffices: it says that something has changed, not what.
        let (sender, messages) = sync_channel(1);
        let eyes = watch.then(|| Eyes::new(sender.clone()));
        let keeper = Keeper {
            registry,
            withdrawn: Box::new(withdrawn),
            eyes,
            unsettled: Unsettled::new(),
        };
        let thread = thread::Builder::new()
            .name("ticket-folder".to_owned())
            .spawn(move || keeper.run(&messages))?;
        Ok(Self {
            sender,
            thread: Some(thread),
        })
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        // Fails if the thread has panicked, as joining it does.
        let _ = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the ticket folder panicked");
        }
    }
}

/// What the thread owns.
struct Keeper {
    registry: Arc<Registry>,
    withdrawn: Withdrawn,
    eyes: Option<Eyes>,
    unsettled: Unsettled,
}

impl Keeper {
    fn run(mut self, messages: &Receiver<Message>) {
        let now = Instant::now();
        // The first scan finds what was written since the start listed the folder.
        let mut scan = self.eyes.is_some().then_some(now);
        let mut chores = now;
        loop {
            let now = Instant::now();
            if scan.is_some_and(|due| due <= now) {
                scan = Some(now + self.scan());
            }
            if chores <= now {
                self.chores();
                chores = now + CHORES;
            }
            let next = scan.map_or(chores, |scan| scan.min(chores));
            match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Message::Changed) => {
                    let soon = Instant::now() + DEBOUNCE;
                    scan = scan.map(|due| due.min(soon));
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.registry.write_index();
    }

    /// Scans the folder; returns the time to the next scan.
    fn scan(&mut self) -> Duration {
        let Some(eyes) = &mut self.eyes else {
            return REASSURE;
        };
        match self.registry.rescan(&mut self.unsettled) {
            Ok(scanned) => {
                for ticket in &scanned.withdrawn {
                    (self.withdrawn)(ticket);
                }
                // A folder that is new to the watch may have been filled before it was watched.
                if eyes.look_at(scanned.folders) || scanned.unsettled {
                    return SETTLE;
                }
                eyes.patience()
            }
            Err(error) => {
                tracing::warn!(%error, "the ticket folder cannot be scanned");
                eyes.forget();
                eyes.patience()
            }
        }
    }

    fn chores(&self) {
        self.registry.probe();
        self.registry.write_index();
    }
}

/// The system's reports of changes.
struct Eyes {
    /// `None` if the system reports none.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Eyes {
    fn new(sender: SyncSender<Message>) -> Self {
        let report = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, concerns_tickets) {
                // A full channel holds a report already.
                let _ = sender.try_send(Message::Changed);
            }
        };
        let watcher = notify::recommended_watcher(report);
        let watcher = watcher.map_err(|error| blind(&error)).ok();
        Self {
            watcher,
            watched: BTreeSet::new(),
        }
    }

    /// Watches these folders; says whether one is new.
    fn look_at(&mut self, folders: Vec<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let folders: BTreeSet<_> = folders.into_iter().collect();
        for gone in self.watched.difference(&folders) {
            // Fails if the folder was deleted, which has ended the watch.
            let _ = watcher.unwatch(gone);
        }
        let new: Vec<_> = folders.difference(&self.watched).cloned().collect();
        for folder in &new {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                blind(&error);
                self.watcher = None;
                return false;
            }
        }
        self.watched = folders;
        !new.is_empty()
    }

    /// Watches all folders anew at the next look.
    fn forget(&mut self) {
        self.watched.clear();
    }

    fn patience(&self) -> Duration {
        if self.watcher.is_some() {
            REASSURE
        } else {
            POLL
        }
    }
}

/// Says that changes are not reported.
fn blind(error: &notify::Error) {
    let seconds = POLL.as_secs();
    tracing::warn!(%error, "cannot watch the ticket folder: looking every {seconds} s instead");
}

/// Whether an event may concern tickets: not a mere read, nor the server's own files.
fn concerns_tickets(event: &Event) -> bool {
    let own = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b".")
    };
    let read = matches!(event.kind, EventKind::Access(kind) if !is_end_of_writing(kind));
    event.need_rescan() || !read && (event.paths.is_empty() || !event.paths.iter().all(own))
}

fn is_end_of_writing(kind: notify::event::AccessKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    kind == AccessKind::Close(AccessMode::Write)
}
