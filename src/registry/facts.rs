//! What the registry knows of a ticket without reading its file again.

use serde::{Deserialize, Serialize};

use crate::model::TicketBytes;
use crate::ticket::{BoundTicket, DeltaDtype, Digest};

/// Facts of one ticket file, checked against the base. They take a few hundred bytes; the rest of
/// the metadata, above all `training`, stays in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Positions that the ticket touches.
    pub nonzeros: usize,
    /// The narrowest dtype that holds all deltas exactly. (An index of an older version, which is
    /// not used, lacks it.)
    #[serde(default)]
    pub dtype: DeltaDtype,
    /// Upper bound of the memory that the loaded ticket takes; depends on the server's device and
    /// ticket mode.
    pub memory: TicketBytes,
    /// Stated density, in (0, 1].
    pub density: f64,
    /// Name of the base that the file states.
    pub base_name: String,
    /// Fingerprint of that base.
    pub base_fingerprint: Digest,
    /// Licence of the ticket.
    pub license: Option<String>,
}

impl Facts {
    /// Facts of a checked ticket that takes `memory` once it is loaded.
    pub(super) fn new(ticket: &BoundTicket, memory: TicketBytes) -> Self {
        let metadata = ticket.metadata();
        Self {
            digest: ticket.digest(),
            file_bytes: ticket.file_bytes(),
            nonzeros: ticket.nonzeros(),
            dtype: ticket.widest(),
            memory,
            density: metadata.density,
            base_name: metadata.base_name.clone(),
            base_fingerprint: metadata.base_fingerprint,
            license: metadata.license.clone(),
        }
    }
}
