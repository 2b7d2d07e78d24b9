//! Policy by which groups take turns: a group runs until its turn is used up and another one waits.

use crate::engine::costs::Load;
use crate::engine::plan::Group;

/// Length of a turn while other groups wait.
#[derive(Clone, Copy, Debug)]
pub struct TurnLimits {
    /// Steps per turn.
    pub steps: usize,
    /// Tokens per turn, so that each chunk of a long prompt is a separate turn.
    pub tokens: usize,
}

impl TurnLimits {
    /// Steps of a turn whose steps compute `rows` tokens each.
    pub fn steps_of(self, rows: usize) -> usize {
        self.tokens.div_ceil(rows.max(1)).min(self.steps)
    }
}

/// The turn of a group, and the rest of its limits.
#[derive(Clone, Copy, Debug)]
struct Turn {
    group: Group,
    left: TurnLimits,
}

impl Turn {
    fn is_over(&self) -> bool {
        self.left.steps == 0 || self.left.tokens == 0
    }

    /// Uses up a step of `rows` tokens.
    fn use_step(&mut self, rows: usize) {
        self.left.steps = self.left.steps.saturating_sub(1);
        self.left.tokens = self.left.tokens.saturating_sub(rows);
    }
}

/// The current turn, and the limits of each turn.
#[derive(Debug)]
pub struct Turns {
    limits: TurnLimits,
    turn: Option<Turn>,
}

impl Turns {
    /// Turns of these limits, none of them begun.
    pub fn new(limits: TurnLimits) -> Self {
        Self { limits, turn: None }
    }

    /// The limits of each turn.
    pub fn limits(&self) -> TurnLimits {
        self.limits
    }

    /// The group that runs next: the one whose turn it is, or else the first of the others. `loads`
    /// begin with the urgent groups, and then the longest-waiting. An urgent group ends the turn of
    /// one that is not.
    pub fn next(&mut self, loads: &[Load]) -> Option<Group> {
        let works = |turn: &Turn| loads.iter().any(|load| load.group == turn.group);
        let current = self.turn.filter(works);
        let any_urgent = loads.iter().any(|load| load.urgent);
        let is_urgent = |turn: &Turn| {
            let mut own = loads.iter().filter(|load| load.group == turn.group);
            own.any(|load| load.urgent)
        };
        let goes_on = |turn: &Turn| !turn.is_over() && (!any_urgent || is_urgent(turn));
        if let Some(turn) = current.filter(goes_on) {
            return Some(turn.group);
        }
        let current = current.map(|turn| turn.group);
        let mut groups = loads.iter().map(|load| load.group);
        let group = groups.find(|&group| Some(group) != current).or(current)?;
        let left = self.limits;
        self.turn = Some(Turn { group, left });
        Some(group)
    }

    /// Ends the turn as soon as another group has work.
    pub fn use_up(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.left.steps = 0;
        }
    }

    /// Counts a planned step, with its number of tokens per group.
    pub fn record_step(&mut self, rows: &[(Group, usize)]) {
        if let Some(turn) = &mut self.turn {
            turn.use_step(rows.iter().map(|(_, rows)| rows).sum());
        }
    }
}
