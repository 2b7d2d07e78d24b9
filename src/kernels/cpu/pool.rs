//! The thread pool of CPU kernels. Between operations its workers spin for a moment, so that
//! splitting an operation costs well under a microsecond, and then sleep.

use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Polls of the state between two looks at the clock (in a worker) or two yields (in a caller).
const POLLS: usize = 64;

/// The threads that operations are split among. Code within [`Pool::install`] may also use rayon,
/// whose separate threads, the same number, sleep between uses.
pub struct Pool {
    workers: Workers,
    rayon: rayon::ThreadPool,
}

/// The reason why a pool could not start its threads.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Spawn(#[from] std::io::Error),
    #[error(transparent)]
    Rayon(#[from] rayon::ThreadPoolBuildError),
}

impl Pool {
    /// Starts a pool of `threads` threads, counting the one that calls an operation.
    ///
    /// # Errors
    /// The system cannot start the threads.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        let workers = Workers::new(threads)?;
        let team = Arc::clone(&workers.team);
        let rayon = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("kernel-{i}"))
            .start_handler(move |_| enter(&team))
            .build()?;
        Ok(Self { workers, rayon })
    }

    /// Runs `body` with all of its operations split among the pool's threads.
    pub fn install<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.rayon.install(body)
    }

    /// Number of threads, counting the caller of an operation.
    pub fn threads(&self) -> usize {
        self.workers.team.threads()
    }
}

thread_local! {
    /// The team among which operations of this thread are split, if it has entered a pool.
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// Workers for all cores, used by threads that have not entered a pool.
static ALL: LazyLock<Workers> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Workers::new(threads).expect("threads for all cores")
});

/// Makes `team` the team of this thread.
fn enter(team: &Arc<Team>) {
    TEAM.with_borrow_mut(|current| *current = Some(Arc::clone(team)));
}

/// The team of this thread.
pub(super) fn team() -> Arc<Team> {
    TEAM.with_borrow(|team| Arc::clone(team.as_ref().unwrap_or_else(|| &ALL.team)))
}

/// A team and its worker threads, which are joined on drop.
struct Workers {
    team: Arc<Team>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn new(threads: usize) -> Result<Self, std::io::Error> {
        let slots = (1..threads).map(|_| WorkerSlot::default()).collect();
        let mut workers = Self {
            team: Arc::new(Team::new(slots)),
            threads: Vec::new(),
        };
        for index in 0..threads.saturating_sub(1) {
            let team = Arc::clone(&workers.team);
            let builder = std::thread::Builder::new().name(format!("team-{index}"));
            let worker = builder.spawn(move || {
                enter(&team);
                team.work(&team.slots[index]);
            })?;
            // A worker does not sleep before its handle is set.
            let _ = workers.team.slots[index]
                .thread
                .set(worker.thread().clone());
            workers.threads.push(worker);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.team.closing.store(true, Ordering::SeqCst);
        self.team.wake(self.threads.len());
        for worker in self.threads.drain(..) {
            // Never an error: the worker catches panics of operations.
            let _ = worker.join();
        }
    }
}

/// The shared state of the workers. Runs one operation at a time.
pub(super) struct Team {
    /// Whether an operation is running.
    busy: AtomicBool,
    /// `number << 32 | OPEN | workers inside`. The number increases with each operation.
    state: AtomicU64,
    /// The running operation. Written by the thread that holds `busy` while no worker is inside;
    /// read only by workers inside.
    operation: UnsafeCell<Option<ParallelFor>>,
    /// Start of the next range.
    next: AtomicUsize,
    /// Payload of the first panic in a worker.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    slots: Vec<WorkerSlot>,
    /// Whether the workers are to exit.
    closing: AtomicBool,
}

/// State bit: workers may enter the operation.
const OPEN: u64 = 1 << 31;
/// State bits: the number of workers inside.
const INSIDE: u64 = OPEN - 1;

/// Per-worker state, by which others wake it.
#[derive(Default)]
struct WorkerSlot {
    asleep: AtomicBool,
    /// Handle of the worker, set once it is spawned.
    thread: OnceLock<Thread>,
}

/// One operation: `body` is called on ranges of `chunk` that cover `0..len`.
#[derive(Clone, Copy)]
struct ParallelFor {
    body: *const (dyn Fn(Range<usize>) + Sync),
    len: usize,
    chunk: usize,
}

// SAFETY: `operation` is the only field that is not `Sync` (and not `Send`, because of its
// pointer). It is written while no worker is inside and read only by workers inside (see `run` and
// `work`). The closure that it points to is `Sync` and outlives every worker's stay.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

impl Team {
    fn new(slots: Vec<WorkerSlot>) -> Self {
        Self {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            operation: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            slots,
            closing: AtomicBool::new(false),
        }
    }

    /// Number of threads: the workers and the caller.
    pub fn threads(&self) -> usize {
        self.slots.len() + 1
    }

    /// Runs `body` on ranges of length `chunk` that cover `0..len`, each on the first free thread,
    /// and returns when all are done. The caller runs `body(0..len)` alone if the workers are busy
    /// with an operation of another thread, or with one that this operation is nested in.
    pub fn run(&self, len: usize, chunk: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        if self.slots.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            return body(0..len);
        }
        // SAFETY: only the lifetime changes. No worker calls the body after this function returns:
        // workers enter only while the state is open, and this function closes it and waits for
        // those inside.
        let body: &'static (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(body) };
        let operation = ParallelFor { body, len, chunk };
        // SAFETY: no worker is inside, because the previous operation waited for that, and `busy`
        // excludes other callers.
        unsafe { *self.operation.get() = Some(operation) };
        self.next.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.state.store(number << 32 | OPEN, Ordering::SeqCst);
        self.wake(len.div_ceil(chunk) - 1);
        let own_part = catch_unwind(AssertUnwindSafe(|| self.take_part(operation)));
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut polls = 0;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            polls += 1;
            if polls % POLLS == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let worker_panic = self
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = own_part.err().or(worker_panic) {
            resume_unwind(payload);
        }
    }

    /// Runs ranges until none are left.
    fn take_part(&self, operation: ParallelFor) {
        loop {
            let start = self.next.fetch_add(operation.chunk, Ordering::Relaxed);
            if start >= operation.len {
                return;
            }
            // SAFETY: `run` keeps the body alive until it and every worker inside have left.
            let body = unsafe { &*operation.body };
            body(start..operation.len.min(start + operation.chunk));
        }
    }

    /// Wakes the sleepers among the first `n` workers.
    fn wake(&self, n: usize) {
        // Pairs with the fence in `next_state`: either the worker sees the new state after it set
        // `asleep`, or this thread sees `asleep`.
        fence(Ordering::SeqCst);
        for slot in self.slots.iter().take(n) {
            if slot.asleep.load(Ordering::Relaxed) && slot.asleep.swap(false, Ordering::AcqRel) {
                let thread = slot.thread.get().expect("a sleeping worker has a handle");
                thread.unpark();
            }
        }
    }

    /// The loop of a worker: waits for operations and takes part in them until the team closes.
    fn work(&self, slot: &WorkerSlot) {
        let mut done = 0;
        while let Some(state) = self.next_state(slot, done) {
            let entered =
                self.state
                    .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if entered.is_err() {
                continue;
            }
            done = state >> 32;
            // SAFETY: this worker is inside, and the operation was written before the state was
            // opened.
            let operation =
                unsafe { (*self.operation.get()).expect("an open state has an operation") };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.take_part(operation))) {
                self.panic
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(payload);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open operation other than number `done` and returns its state, or `None` when
    /// the team closes.
    fn next_state(&self, slot: &WorkerSlot, done: u64) -> Option<u64> {
        let is_new = |state: u64| state & OPEN != 0 && state >> 32 != done;
        let mut idle_since = Instant::now();
        loop {
            for _ in 0..POLLS {
                let state = self.state.load(Ordering::Acquire);
                if is_new(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.closing.load(Ordering::SeqCst) {
                return None;
            }
            if idle_since.elapsed() < SPIN || slot.thread.get().is_none() {
                continue;
            }
            slot.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !is_new(self.state.load(Ordering::SeqCst)) && !self.closing.load(Ordering::SeqCst) {
                std::thread::park();
            }
            slot.asleep.store(false, Ordering::Relaxed);
            idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of visits to each index.
    fn visits(pool: &Pool, len: usize, chunk: usize) -> Vec<usize> {
        let seen: Vec<_> = (0..len).map(|_| AtomicUsize::new(0)).collect();
        let visit = |range: Range<usize>| {
            for i in range {
                seen[i].fetch_add(1, Ordering::Relaxed);
            }
        };
        pool.install(|| team().run(len, chunk, &visit));
        seen.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_operation_visits_each_index_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let (len, chunk) = (round % 97 + 1, round % 7 + 1);
                assert!(visits(&pool, len, chunk).iter().all(|&n| n == 1));
                if round % 500 == 0 {
                    std::thread::sleep(4 * SPIN); // Let the workers fall asleep.
                }
            }
        }
    }

    #[test]
    fn several_threads_work_at_once() {
        let pool = Pool::new(3).unwrap();
        let inside = AtomicUsize::new(0);
        // No thread leaves before all three are inside.
        let meet = |_: Range<usize>| {
            inside.fetch_add(1, Ordering::SeqCst);
            while inside.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
        };
        pool.install(|| team().run(3, 1, &meet));
    }

    #[test]
    fn a_nested_operation_runs_on_its_callers_thread() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        let inner = |range: Range<usize>| {
            total.fetch_add(range.len(), Ordering::Relaxed);
        };
        let outer = |range: Range<usize>| {
            for _ in range {
                team().run(10, 1, &inner);
            }
        };
        pool.install(|| team().run(50, 1, &outer));
        assert_eq!(total.into_inner(), 500);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(4).unwrap();
        for bad in 0..40 {
            let body = |range: Range<usize>| assert!(!range.contains(&bad), "part {bad}");
            let run = || pool.install(|| team().run(40, 1, &body));
            let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let message = payload.downcast_ref::<String>().expect("a message");
            assert_eq!(*message, format!("part {bad}"));
            assert!(visits(&pool, 40, 1).iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn concurrent_callers_all_complete() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 1..300 {
                        assert!(visits(&pool, round, 3).iter().all(|&n| n == 1));
                    }
                });
            }
        });
    }
}
