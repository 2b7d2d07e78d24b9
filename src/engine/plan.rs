//! The plan of one step: plain data that the scheduler hands to the runner.

use super::blocks::BlockTable;
use crate::metrics::StepMode;
use crate::ticket::Digest;

/// Key of the sequences that share a ticket: the digest of its content, or `None` for the base.
pub type Group = Option<Digest>;

/// Number of a sequence, in order of arrival.
pub type SequenceId = u64;

/// The groups that a step runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// All groups.
    All,
    /// All groups except these.
    AllBut(Vec<Group>),
    /// A single group.
    One(Group),
}

impl Groups {
    /// All groups except `excluded`, which may be empty.
    pub fn all_but(excluded: Vec<Group>) -> Self {
        if excluded.is_empty() {
            Self::All
        } else {
            Self::AllBut(excluded)
        }
    }

    /// Whether a group is among these.
    pub fn contain(&self, group: Group) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(excluded) => !excluded.contains(&group),
            Self::One(one) => *one == group,
        }
    }
}

/// The work of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The groups that the step was planned for.
    pub groups: Groups,
    /// Chunks to compute; the chunks of a group are adjacent.
    pub chunks: Vec<Chunk>,
}

impl Plan {
    /// Number of tokens that the step computes.
    pub fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }

    /// Number of tokens that the step computes for each group.
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

/// Tokens `start..start + len` of a sequence, with the metadata that the runner needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// Its group.
    pub group: Group,
    /// Position of the first token.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Whether the chunk ends at the last known token, so that the next one is sampled.
    pub samples: bool,
    /// Block table of the sequence; its blocks hold all positions up to the chunk's last.
    pub blocks: BlockTable,
}
