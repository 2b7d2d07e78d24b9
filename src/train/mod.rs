//! The offline trainer: calibrate → mask → adapt (Lottery Ticket Adaptation, arXiv 2406.16797).
//!
//! [`train`] takes a base, rows and a [`TrainConfig`], and gives a ticket. A phase is a loop over
//! [`Backprop`], which hands the factors of weight gradients to what is trained: whole
//! tensors while calibrating, a mask's positions while adapting, where neither a dense gradient nor a
//! dense optimizer state is ever formed.

mod backprop;
mod batches;
mod config;
mod error;
mod event;
mod job;
mod mask;
mod optimizer;
mod phase;
pub mod report;
mod run;
mod run_folder;
mod start;
mod trainable;

pub use backprop::{Backprop, Gradients, Rows, Slot};
pub use config::{Phase, PhaseConfig, Score, TrainConfig};
pub use error::TrainError;
pub use event::{Event, StepReport};
pub use job::{Job, Keep, Losses, MaskSource, Observe, Trained, train};
pub use optimizer::{Decay, Kind as OptimizerKind};
pub use run_folder::{Existing, RunFolder, SavedState};
