//! What a ticket is: the file, its validation, the base it is checked against, which positions it
//! keeps, and imports.
//!
//! A value of a type here has passed its checks. [`TensorDelta`] is a well-formed sparse matrix,
//! [`Ticket`] is a self-consistent file (all that it can promise without knowing the base), and
//! [`BoundTicket`] fits a base. So whoever walks a [`BoundTicket`] may index the base's weights
//! without looking again.
//!
//! This layer knows no model, no runtime and no HTTP.

mod bind;
mod container;
mod delta;
mod digest;
mod error;
mod format;
pub mod import;
mod manifest;
pub mod merge;
mod metadata;
mod random;
pub mod select;

use std::collections::BTreeMap;
use std::path::Path;

pub use bind::BoundTicket;
pub use container::MAX_HEADER_BYTES;
pub use delta::{Columns, DeltaDtype, DeltaError, Deltas, MAX_U16_COLUMNS, TensorDelta};
pub use digest::{Digest, ParseDigestError};
pub use error::TicketError;
pub use format::read_bounded;
pub use manifest::{BaseManifest, ParameterInfo};
pub use metadata::{Metadata, validate_name};
pub use random::random;

/// A sparse task vector: per adapted parameter, the positions and the deltas.
///
/// Self-consistent, and changes at least one weight; whether it fits a base is [`Ticket::bind`]'s
/// question.
#[derive(Debug)]
pub struct Ticket {
    metadata: Metadata,
    tensors: BTreeMap<String, TensorDelta>,
    digest: Digest,
    file_bytes: u64,
}

impl Ticket {
    /// Makes a ticket from its parts, with the digest of the file that [`Ticket::encode`] makes.
    ///
    /// # Errors
    /// Those of [`Ticket::encode`].
    pub fn new(
        metadata: Metadata,
        tensors: BTreeMap<String, TensorDelta>,
    ) -> Result<Self, TicketError> {
        let bytes = format::encode(&metadata, &tensors)?;
        Ok(Self::from_parts(metadata, tensors, &bytes))
    }

    /// Reads a ticket file of at most `max_bytes` into memory. The file is never mapped: cutting
    /// it short under a running server must not be a fault.
    ///
    /// # Errors
    /// The file cannot be read, is larger than `max_bytes`, or is not a valid ticket.
    pub fn read(path: &Path, max_bytes: u64) -> Result<Self, TicketError> {
        Self::from_bytes(&read_bounded(path, max_bytes)?)
    }

    /// Reads a ticket from the bytes of its file, which bound every allocation.
    ///
    /// # Errors
    /// The bytes are not a valid ticket; see [`TicketError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TicketError> {
        let (metadata, tensors) = format::decode(bytes)?;
        Ok(Self::from_parts(metadata, tensors, bytes))
    }

    /// The canonical file: header keys and metadata in byte order, no spaces but the padding, and
    /// the same input always gives the same bytes.
    ///
    /// # Errors
    /// What [`Ticket::from_bytes`] would refuse: bad metadata, no weight changed, a header over
    /// [`MAX_HEADER_BYTES`].
    pub fn encode(
        metadata: &Metadata,
        tensors: &BTreeMap<String, TensorDelta>,
    ) -> Result<Vec<u8>, TicketError> {
        format::encode(metadata, tensors)
    }

    /// Writes the canonical file to a temporary file beside `path`, then renames it, so that
    /// `path` never holds half a ticket. Returns the digest of what was written, which is
    /// [`Ticket::digest`] unless the ticket was read from a file that was not canonical.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<Digest, TicketError> {
        let bytes = format::encode(&self.metadata, &self.tensors)?;
        format::write_atomically(path, &bytes)?;
        Ok(Digest::of(&bytes))
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The deltas by the parameter's name in the checkpoint
    /// (`model.layers.0.self_attn.q_proj.weight`).
    pub fn tensors(&self) -> &BTreeMap<String, TensorDelta> {
        &self.tensors
    }

    /// SHA-256 of the file: the ticket's identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Positions that the ticket holds, over all parameters.
    pub fn nonzeros(&self) -> usize {
        self.tensors.values().map(TensorDelta::nonzeros).sum()
    }

    /// Heap bytes of the arrays.
    pub fn resident_bytes(&self) -> usize {
        let tensors = self.tensors.values();
        tensors.map(TensorDelta::resident_bytes).sum()
    }

    fn from_parts(metadata: Metadata, tensors: BTreeMap<String, TensorDelta>, file: &[u8]) -> Self {
        Self {
            metadata,
            tensors,
            digest: Digest::of(file),
            file_bytes: file.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests;
