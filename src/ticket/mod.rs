//! Tickets: the file format, validation, binding to a base, top-k selection, merging and import.
//!
//! Values of these types are always valid. A [`TensorDelta`] is a well-formed sparse matrix, a
//! [`Ticket`] is a self-consistent file (which is all that can be checked without the base), and a
//! [`BoundTicket`] fits its base, so code that walks one may index the base's weights without
//! further checks.
//!
//! This layer does not depend on the model, the async runtime or HTTP.

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
pub mod top_k;

use std::collections::BTreeMap;
use std::path::Path;

pub use bind::BoundTicket;
pub use container::MAX_HEADER_BYTES;
pub use delta::{Columns, DeltaDtype, DeltaError, Deltas, MAX_U16_COLUMNS, TensorDelta};
pub use digest::{Digest, ParseDigestError};
pub use error::TicketError;
pub use format::{open_regular, read_bounded};
pub use manifest::{BaseManifest, ParameterInfo};
pub use metadata::{MAX_TRAINING_BYTES, Metadata, validate_name};
pub use random::random_ticket;

/// A sparse task vector: the positions and the deltas of each adapted parameter.
///
/// It is self-consistent and changes at least one weight. [`Ticket::bind`] checks that it fits a
/// base.
///
/// ```
/// # use std::collections::BTreeMap;
/// # use tombola::ticket::{BaseManifest, DeltaDtype, Deltas, Digest, Metadata, ParameterInfo};
/// # use tombola::ticket::{TensorDelta, Ticket};
/// let parameter = "model.layers.0.mlp.down_proj.weight".to_owned();
/// let info = ParameterInfo { shape: vec![2, 3], adaptable: true };
/// let base = BaseManifest {
///     name: "tiny".to_owned(),
///     fingerprint: Digest::of(b"its parameters"),
///     parameters: BTreeMap::from([(parameter.clone(), info)]),
/// };
/// // Adds 0.5 to row 1, column 0 of a 2 × 3 weight, which is position 3.
/// let deltas = Deltas::from_f32(vec![0.5], DeltaDtype::Bf16);
/// let delta = TensorDelta::from_flat([2, 3], &[3], deltas)?;
/// let metadata = Metadata::new("demo", &base, 1);
/// let file = Ticket::encode(&metadata, &BTreeMap::from([(parameter, delta)]))?;
///
/// let ticket = Ticket::from_bytes(&file)?.bind(&base, false)?;
/// assert_eq!(ticket.digest(), Digest::of(&file));
/// assert_eq!(ticket.metadata().density, 1.0 / 6.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ticket {
    metadata: Metadata,
    tensors: BTreeMap<String, TensorDelta>,
    digest: Digest,
    file_bytes: u64,
    /// Digests of the tickets that it was composed of; none if it was read from a file.
    parts: Vec<Digest>,
}

impl Ticket {
    /// Builds a ticket from its parts. Its digest is that of the canonical file
    /// ([`Ticket::encode`]).
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

    /// Reads a ticket file of at most `max_bytes` into memory. The file is never memory-mapped,
    /// because truncating it under a running server would then raise SIGBUS.
    ///
    /// # Errors
    /// The file cannot be read, is larger than `max_bytes`, or is not a valid ticket.
    pub fn read(path: &Path, max_bytes: u64) -> Result<Self, TicketError> {
        Self::from_bytes(&read_bounded(path, max_bytes)?)
    }

    /// Reads a ticket from the bytes of its file. The file size bounds every allocation.
    ///
    /// # Errors
    /// The bytes are not a valid ticket; see [`TicketError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TicketError> {
        let (metadata, tensors) = format::decode(bytes)?;
        Ok(Self::from_parts(metadata, tensors, bytes))
    }

    /// Serialises the canonical file: header keys and metadata are in byte order, without spaces
    /// except for padding, so the same input always gives the same bytes.
    ///
    /// # Errors
    /// [`Ticket::from_bytes`] would refuse the file: the metadata is invalid, no weight changes, or
    /// the header exceeds [`MAX_HEADER_BYTES`].
    pub fn encode(
        metadata: &Metadata,
        tensors: &BTreeMap<String, TensorDelta>,
    ) -> Result<Vec<u8>, TicketError> {
        format::encode(metadata, tensors)
    }

    /// Writes the canonical file to a temporary file beside `path`, then renames it, so that
    /// `path` never holds a partial ticket. Returns the digest of the written file, which equals
    /// [`Ticket::digest`] unless the ticket was read from a file that was not canonical.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<Digest, TicketError> {
        let bytes = format::encode(&self.metadata, &self.tensors)?;
        format::write_atomically(path, &bytes)?;
        Ok(Digest::of(&bytes))
    }

    /// Forgets the provenance, which serving does not need and the memory budget does not count.
    pub fn forget_training(&mut self) {
        self.metadata.training = None;
    }

    /// The metadata in the file's header.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Deltas by checkpoint name of the parameter (`model.layers.0.self_attn.q_proj.weight`).
    pub fn tensors(&self) -> &BTreeMap<String, TensorDelta> {
        &self.tensors
    }

    /// The ticket's identity: the SHA-256 digest of its file, or of what it was composed of
    /// ([`merge::composition_digest`]).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Digests of the tickets that it was composed of in memory; none if it has a file.
    pub fn parts(&self) -> &[Digest] {
        &self.parts
    }

    /// Size of the file in bytes; 0 if it has none.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Number of positions over all parameters.
    pub fn nonzeros(&self) -> usize {
        self.tensors.values().map(TensorDelta::nonzeros).sum()
    }

    /// The narrowest dtype that holds all deltas exactly.
    pub fn widest(&self) -> DeltaDtype {
        let dtypes = self.tensors.values().map(|delta| delta.deltas().dtype());
        dtypes.max().unwrap_or_default()
    }

    /// Heap bytes of the arrays.
    pub fn resident_bytes(&self) -> usize {
        self.tensors.values().map(TensorDelta::resident_bytes).sum()
    }

    fn from_parts(metadata: Metadata, tensors: BTreeMap<String, TensorDelta>, file: &[u8]) -> Self {
        Self {
            metadata,
            tensors,
            digest: Digest::of(file),
            file_bytes: file.len() as u64,
            parts: Vec::new(),
        }
    }

    /// A ticket without a file, composed of the tickets `parts`.
    fn composed(
        metadata: Metadata,
        tensors: BTreeMap<String, TensorDelta>,
        digest: Digest,
        parts: Vec<Digest>,
    ) -> Result<Self, TicketError> {
        format::check_changes_something(&tensors)?;
        Ok(Self {
            metadata,
            tensors,
            digest,
            file_bytes: 0,
            parts,
        })
    }
}

#[cfg(test)]
mod tests;
