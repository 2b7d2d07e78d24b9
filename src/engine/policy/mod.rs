//! Policy: picks the groups of the next step. Plain data, no tensors, no clocks.

mod by_cost;
mod turns;

pub use by_cost::ByCost;
pub use turns::{TurnLimits, Turns};

use super::costs::Load;
use super::plan::{Group, Groups};

/// How groups share the steps.
#[derive(Debug)]
pub enum Policy {
    /// All groups in every step.
    Together,
    /// One group per step.
    Turns(Turns),
    /// Together or apart, whichever costs less.
    ByCost(Box<ByCost>),
}

impl Policy {
    /// Chooses the groups of the next step from those with work, the longest-waiting first. Returns
    /// `None` if there are none.
    pub fn next(&mut self, loads: &[Load]) -> Option<Groups> {
        match self {
            Self::Together => (!loads.is_empty()).then_some(Groups::All),
            Self::Turns(turns) => turns.next(loads).map(Groups::One),
            Self::ByCost(by_cost) => by_cost.next(loads),
        }
    }

    /// Records a planned step, with its number of tokens per group.
    pub fn record_step(&mut self, rows: &[(Group, usize)]) {
        match self {
            Self::Together => {}
            Self::Turns(turns) => turns.record_step(rows),
            Self::ByCost(by_cost) => by_cost.record_step(rows),
        }
    }

    /// Records that the applied ticket was reverted outside of a step.
    pub fn reverted(&mut self) {
        if let Self::ByCost(by_cost) = self {
            by_cost.reverted();
        }
    }
}

#[cfg(test)]
mod tests;
