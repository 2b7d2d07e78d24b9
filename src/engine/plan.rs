//! What a step runs: plain data, from the scheduler to the runner.

use crate::metrics::StepMode;
use crate::ticket::Digest;

/// What a group shares: the content of its ticket, or the bare base.
pub type Group = Option<Digest>;

/// A sequence's number, in order of arrival.
pub type SequenceId = u64;

/// Whose sequences a step runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// Everybody's.
    All,
    /// Everybody's but those of a few.
    AllBut(Vec<Group>),
    One(Group),
}

impl Groups {
    pub fn all_but(few: Vec<Group>) -> Self {
        if few.is_empty() {
            Self::All
        } else {
            Self::AllBut(few)
        }
    }

    pub fn contain(&self, group: Group) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(few) => !few.contains(&group),
            Self::One(one) => *one == group,
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

impl Plan {
    /// Tokens that the step computes, by group.
    pub fn rows_by_group(&self) -> Vec<(Group, usize)> {
        let groups = self.chunks.chunk_by(|a, b| a.group == b.group);
        let rows = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.len).sum();
        groups
            .map(|chunks| (chunks[0].group, rows(chunks)))
            .collect()
    }

    /// How the step's tickets reach its rows.
    pub fn mode(&self) -> StepMode {
        match self.groups {
            _ if self.chunks.iter().all(|chunk| chunk.group.is_none()) => StepMode::Base,
            Groups::One(_) => StepMode::Apply,
            Groups::All | Groups::AllBut(_) => StepMode::Overlay,
        }
    }
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
