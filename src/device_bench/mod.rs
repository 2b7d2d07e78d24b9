//! Device benchmark: decoding steps, swaps and overlays of a synthetic base, next to the times that
//! the memory bandwidth of the device allows.

mod measure;
mod report;
mod shape;

pub use measure::{Figures, Launches, Overlay, Sampling, Step, Swap};
pub use report::Report;
pub use shape::Shape;

use crate::kernels;
use crate::model::{Base, CacheDir, Checkpoint, LoadOptions, ModelError};
use crate::ticket::TicketError;
use measure::Bench;

/// Base, device and size of a benchmark.
#[derive(Clone, Debug)]
pub struct Options {
    pub shape: Shape,
    /// Device and dtype; `max_positions` is replaced by `context`.
    pub load: LoadOptions,
    /// Positions per sequence.
    pub context: usize,
    /// Runs per measurement; the median is reported.
    pub repeats: usize,
    /// Compute threads.
    pub threads: usize,
}

/// Reason why a device could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DeviceBenchError {
    #[error("threads cannot be started: {0}")]
    Threads(String),
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

/// Loads the synthetic base and measures it.
///
/// # Errors
/// The device cannot be opened, or has too little memory.
pub fn run(options: &Options, cache: &CacheDir) -> Result<Report, DeviceBenchError> {
    let load = LoadOptions {
        max_positions: Some(options.context),
        ..options.load.clone()
    };
    let checkpoint = Checkpoint::synthetic(options.shape.config(options.context));
    let name = options.shape.to_string();
    let base = Base::load(&name, &checkpoint, &load, cache, &mut |_| ())?;
    let device = base.device_name();
    let pool = kernels::Pool::new(options.threads)
        .map_err(|error| DeviceBenchError::Threads(error.to_string()))?;
    let mut bench = Bench::new(base, options.context, options.repeats)?;
    Ok(Report {
        shape: name,
        dtype: options.load.dtype.to_string(),
        device,
        threads: options.threads,
        context: options.context,
        figures: pool.install(|| bench.run())?,
    })
}
