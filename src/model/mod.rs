//! The dense base: source, loading and decoder, with tickets applied to its weights and reverted,
//! or overlaid on rows of a batch.

mod checkpoint;
mod config;
mod decoder;
mod device;
mod error;
mod export;
mod fetch;
mod fingerprint;
mod gguf;
mod hub;
mod kv;
mod layout;
mod load;
mod loaded_ticket;
mod progress;
mod read;
mod resident;
mod rope;
mod sliced_digest;
mod source;
mod synthetic;
mod ticket_memory;
mod weights;

pub use checkpoint::{Checkpoint, Files};
pub use config::{Family, ModelConfig, RopeScaling};
pub use decoder::{Batch, Decoder, OverlaidRows, StepRows};
pub use device::{DeviceSpec, Dtype};
pub use error::ModelError;
pub use export::{check_folder, save_folder};
pub use fetch::{CacheDir, default_gguf};
pub use kv::{BLOCK, KvCache};
pub use layout::TicketLayout;
pub(crate) use layout::weight_number;
pub use load::{Base, LoadOptions, manifest};
pub use loaded_ticket::LoadedTicket;
pub use progress::{Progress, Stage};
pub use resident::{Resident, SwapReport};
pub use rope::RopeTable;
pub use sliced_digest::SlicedDigest;
pub use source::{DEFAULT_MODEL, Source};
pub use ticket_memory::{TicketBytes, TicketMemory};
pub use weights::{Layer, Linear, Projection, Weights, layers};
