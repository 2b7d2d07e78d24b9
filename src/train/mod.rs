//! The offline trainer: calibrate → mask → adapt (Lottery Ticket Adaptation, arXiv 2406.16797).
//!
//! [`train`] takes a base and a [`TrainRequest`] and returns a ticket. Each phase is a loop over
//! [`Backprop`], which passes the factors of the weight gradients to the trained tensors: whole
//! tensors while calibrating, the positions of the mask while adapting. Adapting never forms a
//! dense gradient or a dense optimizer state.

mod adaptation;
mod backprop;
mod batches;
mod calibration;
mod config;
mod error;
mod event;
mod extract;
mod learner;
mod mask;
mod optimizer;
mod phase;
pub mod report;
mod request;
mod run;
mod run_folder;
mod schedule;
mod start;
mod task_vector;
mod trainable;
mod trainer;

pub use backprop::{Backprop, Gradients, Rows, Slot};
pub use config::{Phase, PhaseConfig, Score, TrainConfig};
pub use error::TrainError;
pub use event::{Event, StepReport};
pub use extract::{
    ExtractError, ExtractOptions, ExtractProgress, ExtractStage, Extracted, ModelOnDisk, ModelPair,
    NonAdaptable, extract,
};
pub use optimizer::OptimizerKind;
pub use request::{Callbacks, MaskSource, Observer, SaveCalibrated, TrainRequest};
pub use run::Losses;
pub use run_folder::{Existing, RunFolder, SavedState};
pub use schedule::Decay;
pub use start::Start;
pub use trainer::{Trained, train};
