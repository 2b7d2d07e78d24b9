//! The thread pool that benches run on.

use tombola::kernels::Pool;

/// The thread pool of the engine, on all cores.
pub fn pool() -> Pool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Pool::new(threads).expect("threads")
}
