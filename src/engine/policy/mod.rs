//! Whose sequences the next step runs: plain data, no tensors, no clocks.

mod by_cost;
mod turns;

pub use by_cost::ByCost;
pub use turns::{TurnLimits, Turns};

use super::plan::{Group, Groups};

/// What a group would do in the next step, and what its ticket weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub group: Group,
    /// Tokens that it would compute in a step of its own.
    pub rows: usize,
    /// Nonzeros of its ticket; 0 for the base.
    pub nonzeros: usize,
    /// Whether its ticket is laid out for overlaying, or would have to be first.
    pub laid_out: bool,
}

/// How steps are shared out among groups.
#[derive(Debug)]
pub enum Policy {
    /// All groups in every step.
    Together,
    /// One group a step.
    Turns(Turns),
    /// Whichever costs less.
    ByCost(Box<ByCost>),
}

impl Policy {
    /// Whose step is next, given the groups that have something to do, those first that wait longest;
    /// `None` where there are none.
    pub fn next(&mut self, loads: &[Load]) -> Option<Groups> {
        match self {
            Self::Together => (!loads.is_empty()).then_some(Groups::All),
            Self::Turns(turns) => turns.next(loads).map(Groups::One),
            Self::ByCost(by_cost) => by_cost.next(loads),
        }
    }

    /// The step ran, and computed so many tokens of each of these groups.
    pub fn ran(&mut self, rows: &[(Group, usize)]) {
        match self {
            Self::Together => {}
            Self::Turns(turns) => turns.ran(rows),
            Self::ByCost(by_cost) => by_cost.ran(rows),
        }
    }

    /// What was applied was reverted, for another reason than a step.
    pub fn reverted(&mut self) {
        if let Self::ByCost(by_cost) = self {
            by_cost.reverted();
        }
    }
}

#[cfg(test)]
mod tests;
