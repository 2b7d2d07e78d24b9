//! The threads of a step: between operations they spin for a moment, so that to split one costs well
//! under a microsecond, and sleep when nothing comes.

use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread without work looks for some before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two looks at the clock, or at a processor that somebody else may need.
const LOOKS: usize = 64;

/// The threads that operations are split among. What rayon runs within [`Pool::install`] has as many of
/// its own, which sleep meanwhile.
pub struct Pool {
    crew: Crew,
    rayon: rayon::ThreadPool,
}

/// Why a pool has no threads.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Spawn(#[from] std::io::Error),
    #[error(transparent)]
    Rayon(#[from] rayon::ThreadPoolBuildError),
}

impl Pool {
    /// `threads` threads, of which the one that enters is one.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        let crew = Crew::new(threads)?;
        let team = Arc::clone(&crew.team);
        let rayon = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("kernel-{i}"))
            .start_handler(move |_| enter(&team))
            .build()?;
        Ok(Self { crew, rayon })
    }

    /// Runs `body` with all its operations split among the pool's threads.
    pub fn install<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.rayon.install(body)
    }

    pub fn threads(&self) -> usize {
        self.crew.team.threads()
    }
}

thread_local! {
    /// What operations of this thread are split among, where it has entered a pool.
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// All cores, for threads that have entered no pool.
static ALL: LazyLock<Crew> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Crew::new(threads).expect("threads for all cores")
});

fn enter(team: &Arc<Team>) {
    TEAM.with_borrow_mut(|current| *current = Some(Arc::clone(team)));
}

/// The team of this thread.
pub fn team() -> Arc<Team> {
    TEAM.with_borrow(|team| Arc::clone(team.as_ref().unwrap_or_else(|| &ALL.team)))
}

/// A team with its threads, which end when it is dropped.
struct Crew {
    team: Arc<Team>,
    workers: Vec<JoinHandle<()>>,
}

impl Crew {
    fn new(threads: usize) -> Result<Self, std::io::Error> {
        let places = (1..threads).map(|_| Place::default()).collect();
        let mut crew = Self {
            team: Arc::new(Team::new(places)),
            workers: Vec::new(),
        };
        for place in 0..threads.saturating_sub(1) {
            let team = Arc::clone(&crew.team);
            let worker = std::thread::Builder::new().name(format!("team-{place}"));
            let worker = worker.spawn(move || {
                enter(&team);
                team.work(&team.places[place]);
            })?;
            // A worker that is not known yet does not sleep.
            let _ = crew.team.places[place].thread.set(worker.thread().clone());
            crew.workers.push(worker);
        }
        Ok(crew)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.team.ends.store(true, Ordering::SeqCst);
        self.team.wake(self.workers.len());
        for worker in self.workers.drain(..) {
            // It catches what an operation throws.
            let _ = worker.join();
        }
    }
}

/// One operation at a time, and those who may take part in it.
pub struct Team {
    /// Somebody's operation runs.
    busy: AtomicBool,
    /// `number << 32 | OPEN | workers that are in`. The number rises with each operation.
    state: AtomicU64,
    /// Written by whoever holds `busy` while nobody is in; read by who is in.
    job: UnsafeCell<Option<Job>>,
    /// Where the next range starts.
    next: AtomicUsize,
    /// What a worker's part has thrown.
    thrown: Mutex<Option<Box<dyn Any + Send>>>,
    places: Vec<Place>,
    ends: AtomicBool,
}

/// Workers may come in.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// A worker's place.
#[derive(Default)]
struct Place {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(Range<usize>) + Sync),
    len: usize,
    chunk: usize,
}

// SAFETY: `job` is the one part that is not `Sync` (or `Send`, for its pointer). It is written while
// nobody is in and read only by who is in (see `run` and `work`), and what it points to is `Sync` and
// outlives them all.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

impl Team {
    fn new(places: Vec<Place>) -> Self {
        Self {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            thrown: Mutex::new(None),
            places,
            ends: AtomicBool::new(false),
        }
    }

    pub fn threads(&self) -> usize {
        self.places.len() + 1
    }

    /// Runs `body` on ranges of `chunk` that cover `0..len`, as each thread comes to them; returns when
    /// all are done. The whole falls to the caller where the others already work for somebody: for
    /// another thread, or for an operation of which this one is a part.
    pub fn run(&self, len: usize, chunk: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        if self.places.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            return body(0..len);
        }
        // SAFETY: only the lifetime changes. Nobody calls the body after this function: workers come
        // in while the state is open, and it waits for those who came.
        let body: &'static (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(body) };
        let job = Job { body, len, chunk };
        // SAFETY: nobody is in: the last operation waited for that, and `busy` keeps others away.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.state.store(number << 32 | OPEN, Ordering::SeqCst);
        self.wake(len.div_ceil(chunk) - 1);
        let mine = catch_unwind(AssertUnwindSafe(|| self.take_part(job)));
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let theirs = self.thrown.lock();
        let theirs = theirs.unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        if let Some(thrown) = mine.err().or(theirs) {
            resume_unwind(thrown);
        }
    }

    /// Runs ranges until none is left.
    fn take_part(&self, job: Job) {
        loop {
            let start = self.next.fetch_add(job.chunk, Ordering::Relaxed);
            if start >= job.len {
                return;
            }
            // SAFETY: the caller of `run` keeps the body alive while anybody is in.
            let body = unsafe { &*job.body };
            body(start..job.len.min(start + job.chunk));
        }
    }

    /// Wakes those who sleep, of so many.
    fn wake(&self, most: usize) {
        // Either a worker sees the new state after it has said that it sleeps, or this sees it asleep.
        fence(Ordering::SeqCst);
        for place in self.places.iter().take(most) {
            if place.asleep.load(Ordering::Relaxed) && place.asleep.swap(false, Ordering::AcqRel) {
                let thread = place.thread.get().expect("who sleeps is known");
                thread.unpark();
            }
        }
    }

    /// A worker's life.
    fn work(&self, place: &Place) {
        let mut done = 0;
        while let Some(state) = self.next_state(place, done) {
            let came =
                self.state
                    .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if came.is_err() {
                continue;
            }
            done = state >> 32;
            // SAFETY: this worker is in, and the job was written before the state was opened.
            let job = unsafe { (*self.job.get()).expect("an open state has a job") };
            if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| self.take_part(job))) {
                let first = self.thrown.lock();
                first
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(thrown);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open state of another operation than `done`; `None` at the end.
    fn next_state(&self, place: &Place, done: u64) -> Option<u64> {
        let found = |state: u64| state & OPEN != 0 && state >> 32 != done;
        let mut since = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let state = self.state.load(Ordering::Acquire);
                if found(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.ends.load(Ordering::SeqCst) {
                return None;
            }
            if since.elapsed() < SPIN || place.thread.get().is_none() {
                continue;
            }
            place.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !found(self.state.load(Ordering::SeqCst)) && !self.ends.load(Ordering::SeqCst) {
                std::thread::park();
            }
            place.asleep.store(false, Ordering::Relaxed);
            since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each index was visited.
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
    fn every_index_is_visited_once_again_and_again() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let (len, chunk) = (round % 97 + 1, round % 7 + 1);
                assert!(visits(&pool, len, chunk).iter().all(|&n| n == 1));
                if round % 500 == 0 {
                    std::thread::sleep(4 * SPIN); // They sleep, and are woken.
                }
            }
        }
    }

    #[test]
    fn several_threads_work_at_once() {
        let pool = Pool::new(3).unwrap();
        let inside = AtomicUsize::new(0);
        // Nobody leaves before all three are in.
        let meet = |_: Range<usize>| {
            inside.fetch_add(1, Ordering::SeqCst);
            while inside.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
        };
        pool.install(|| team().run(3, 1, &meet));
    }

    #[test]
    fn an_operation_within_one_runs_on_its_thread() {
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
    fn what_a_part_throws_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(4).unwrap();
        for bad in 0..40 {
            let body = |range: Range<usize>| assert!(!range.contains(&bad), "part {bad}");
            let run = || pool.install(|| team().run(40, 1, &body));
            let thrown = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let message = thrown.downcast_ref::<String>().expect("a message");
            assert_eq!(*message, format!("part {bad}"));
            assert!(visits(&pool, 40, 1).iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn callers_that_come_at_once_all_get_their_work_done() {
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
