//! Errors of a training run.

use std::io;
use std::path::{Path, PathBuf};

use super::config::Phase;
use crate::model::ModelError;
use crate::ticket::TicketError;
use crate::ticket::top_k::TopKError;

/// Error that ends a training run; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(
        "the {what} is {value} in step {step} of the {phase} phase; {saved}. Try a lower peak \
         learning rate than {rate:e}"
    )]
    NotFinite {
        what: &'static str,
        value: f64,
        phase: Phase,
        step: usize,
        rate: f32,
        /// State saved in the run folder, in words.
        saved: String,
    },
    #[error("stopped after step {step} of the {phase} phase, which is saved")]
    Stopped { phase: Phase, step: usize },
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Folder { path: PathBuf, reason: String },
    #[error("{} holds an unfinished run", .0.display())]
    Unfinished(PathBuf),
    #[error("there is nothing to resume in {}", .0.display())]
    NothingToResume(PathBuf),
    #[error("the run in {} was started with another {what}: {then}, now {now}", path.display())]
    OtherRun {
        path: PathBuf,
        what: String,
        then: String,
        now: String,
    },
    #[error(
        "a density of {density} keeps no weight: it is too low for this base, or calibration moved \
         no weight that the mask may hold"
    )]
    EmptyMask { density: f64 },
    #[error("cannot save the calibrated base: {0}")]
    SaveCalibrated(String),
    #[error("cannot start the compute threads: {0}")]
    Threads(String),
    #[error(transparent)]
    Select(#[from] TopKError),
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
}

impl TrainError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            action,
            path: path.to_owned(),
            error,
        }
    }
}
