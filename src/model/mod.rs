//! The dense base: where it comes from, how it is loaded, what it computes, and how a ticket is
//! applied to it and reverted, or laid over the rows of a batch.

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
mod load;
mod overlay;
mod progress;
mod resident;
mod rope;
mod source;
mod synthetic;
mod weights;

pub use checkpoint::{Checkpoint, Files};
pub use config::{Family, ModelConfig, RopeScaling};
pub use decoder::{Batch, Decoder};
pub use device::{DeviceSpec, Dtype};
pub use error::ModelError;
pub use export::{check_folder, save_folder};
pub use fetch::{CacheDir, default_gguf};
pub use kv::{BLOCK, KvCache};
pub use load::{Base, LoadOptions, manifest};
pub use overlay::{Overlaid, TicketOverlay};
pub use progress::{Progress, Stage};
pub use resident::{Resident, SwapReport};
pub use rope::RopeTable;
pub use source::{DEFAULT_MODEL, Source};
pub use weights::{Layer, Linear, Projection, Weights, layers};
