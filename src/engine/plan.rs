//! What a step runs: plain data, from the scheduler to the runner.

use crate::ticket::Digest;

/// What a group shares: the content of its ticket, or the bare base.
pub type Group = Option<Digest>;

/// A sequence's number, in order of arrival.
pub type SequenceId = u64;

/// Whose sequences a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// Everybody's.
    All,
    One(Group),
}

impl Groups {
    pub fn contain(self, group: Group) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == group,
        }
    }
}

/// One step's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub groups: Groups,
    /// Those of one group follow one another.
    pub chunks: Vec<Chunk>,
}

/// Tokens `start..start + len` of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub id: SequenceId,
    pub group: Group,
    pub start: usize,
    pub len: usize,
    /// The chunk ends at the last known token: the next one is to be chosen.
    pub samples: bool,
}
