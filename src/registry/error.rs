//! Why the registry refuses an operation.

use std::io;
use std::path::PathBuf;

use super::selection::SelectionError;
use super::ticket_folder::FileFault;
use crate::model::ModelError;
use crate::ticket::{Digest, TicketError};

/// Reason why the registry refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("there is no ticket `{0}`")]
    Unknown(String),
    #[error("a ticket `{0}` exists already; pass `replace=true` to replace it")]
    Exists(String),
    #[error(
        "a ticket `{existing}` exists already, and names must differ in more than case from \
         `{alias}`"
    )]
    DiffersInCase { alias: String, existing: String },
    #[error("{}", precondition_message(.alias, .found.as_ref()))]
    Precondition {
        alias: String,
        /// Digest of the ticket as it is; `None` if there is none.
        found: Option<Digest>,
    },
    #[error("the ticket `{0}` is public: only the operator may change it")]
    Public(String),
    #[error("`{0}` is the base's own name")]
    Reserved(String),
    #[error("the name `{0}` reads as a digest, which requests use to name a content")]
    ReadsAsDigest(String),
    #[error(transparent)]
    Name(TicketError),
    #[error(transparent)]
    Invalid(TicketError),
    #[error("the ticket needs {needed} bytes of {tier} memory; {available} bytes are available")]
    TooLargeForMemory {
        tier: Tier,
        needed: usize,
        /// The budget, less what is pinned.
        available: usize,
    },
    #[error(transparent)]
    Selection(#[from] SelectionError),
    #[error("`{name}` cannot be composed: {error}")]
    Composition {
        name: String,
        error: Box<TicketError>,
    },
    #[error(
        "composing `{name}` needs {needed} bytes of {tier} memory; {available} bytes are available"
    )]
    CompositionTooLarge {
        name: String,
        tier: Tier,
        needed: usize,
        /// The budget, less what is pinned.
        available: usize,
    },
    #[error(
        "no memory for ticket `{alias}` ({needed} bytes) within the budget: all tickets in memory \
         are in use"
    )]
    MemoryFull { alias: String, needed: usize },
    #[error("{waiting} requests wait for ticket memory already; try again in {retry_after} s")]
    LineFull {
        waiting: usize,
        /// Seconds until there is probably a place.
        retry_after: u64,
    },
    #[error(
        "this tenant or ticket holds its share of the line for ticket memory: {waiting} of its \
         requests wait already; try again in {retry_after} s"
    )]
    LineShare {
        waiting: usize,
        /// Seconds until there is probably a place.
        retry_after: u64,
    },
    #[error(
        "pinning `{alias}` leaves {left} bytes of {tier} memory for other tickets; the largest \
         needs {needed}"
    )]
    PinsTooLarge {
        alias: String,
        tier: Tier,
        left: usize,
        needed: usize,
    },
    #[error(
        "the file of ticket `{alias}`, {}, changed since publication: {reason}",
        path.display()
    )]
    Changed {
        alias: String,
        path: PathBuf,
        reason: String,
    },
    #[error("{fault}")]
    Refused { path: PathBuf, fault: FileFault },
    #[error(
        "the ticket folder {} is in use by {by}: stop that server, or choose another folder",
        folder.display()
    )]
    InUse { folder: PathBuf, by: String },
    #[error("cannot arrange ticket `{alias}` for the device: {error}")]
    Layout { alias: String, error: ModelError },
    #[error("`{0}` is the name of a folder of the ticket folder: choose another name")]
    Obstructed(String),
    #[error("{} is a link: tickets are stored in real folders only", .0.display())]
    LinkedFolder(PathBuf),
    #[error("loading a ticket failed: {0}")]
    LoadFailed(String),
    #[error("the path is not a ticket file below the ticket folder")]
    NotInside,
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// Where a ticket's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In its file only.
    Disk,
    /// In the host's memory; on the CPU, ready to run.
    Host,
    /// In the device's own memory too, ready to run.
    Device,
}

impl Tier {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Device => "device",
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn precondition_message(alias: &str, found: Option<&Digest>) -> String {
    match found {
        Some(digest) => {
            format!("the precondition failed: ticket `{alias}` exists with digest {digest}")
        }
        None => format!("the precondition failed: there is no ticket `{alias}`"),
    }
}
