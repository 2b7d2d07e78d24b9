//! Groups take turns: a group keeps the steps until its turn is used up and another one waits.

use super::Load;
use crate::engine::plan::Group;

/// How long a turn lasts while others wait.
#[derive(Clone, Copy, Debug)]
pub struct TurnLimits {
    pub steps: usize,
    /// Tokens after which a turn ends too, so that a long prompt's chunks are turns of their own.
    pub tokens: usize,
}

impl TurnLimits {
    /// Steps of a turn where each computes so many tokens.
    pub fn steps_of(self, rows: usize) -> usize {
        self.tokens.div_ceil(rows.max(1)).min(self.steps)
    }
}

/// A group's turn, and what is left of it.
#[derive(Clone, Copy, Debug)]
struct Turn {
    group: Group,
    left: TurnLimits,
}

impl Turn {
    fn new(group: Group, limits: TurnLimits) -> Self {
        let left = limits;
        Self { group, left }
    }

    fn is_over(&self) -> bool {
        self.left.steps == 0 || self.left.tokens == 0
    }

    fn ran(&mut self, rows: usize) {
        self.left.steps = self.left.steps.saturating_sub(1);
        self.left.tokens = self.left.tokens.saturating_sub(rows);
    }
}

/// Whose turn it is.
#[derive(Debug)]
pub struct Turns {
    limits: TurnLimits,
    turn: Option<Turn>,
}

impl Turns {
    pub fn new(limits: TurnLimits) -> Self {
        Self { limits, turn: None }
    }

    /// The group that runs next: the one whose turn it is, or else the one that waits longest.
    pub fn next(&mut self, loads: &[Load]) -> Option<Group> {
        let works = |turn: &Turn| loads.iter().any(|load| load.group == turn.group);
        let current = self.turn.filter(works);
        if let Some(turn) = current.filter(|turn| !turn.is_over()) {
            return Some(turn.group);
        }
        let current = current.map(|turn| turn.group);
        let mut groups = loads.iter().map(|load| load.group);
        let group = groups.find(|&group| Some(group) != current).or(current)?;
        self.turn = Some(Turn::new(group, self.limits));
        Some(group)
    }

    /// Ends the turn as soon as another group has something to do.
    pub fn use_up(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.left.steps = 0;
        }
    }

    /// A step computed so many tokens of each of these groups.
    pub fn ran(&mut self, rows: &[(Group, usize)]) {
        if let Some(turn) = &mut self.turn {
            turn.ran(rows.iter().map(|(_, rows)| rows).sum());
        }
    }
}
