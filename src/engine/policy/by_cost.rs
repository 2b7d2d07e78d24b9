//! All groups together or some by themselves, by what each costs.
//!
//! All together, tickets laid over their rows, is the rule. A ticket keeps an account of what its steps
//! would have cost less (or do cost less) with its group by itself and the ticket applied. When that
//! reaches what a swap costs, and a turn would save as much again, the group is on its own: it takes
//! turns with the rest, which stay together, and pays each swap from its account. So a ticket by itself
//! costs at most twice what would have been cheapest in hindsight (the ski-rental rule), and nothing flaps,
//! since each swap has to be earned again. A turn ends when it is used up while others wait, or when making them wait has cost as
//! much as coming back will; next is who waits longest. So no ticket starves.

use std::collections::HashMap;

use super::{Load, TurnLimits, Turns};
use crate::engine::costs::Costs;
use crate::engine::plan::{Group, Groups};
use crate::ticket::Digest;

/// Decides by cost, step by step.
#[derive(Debug)]
pub struct ByCost {
    costs: Costs,
    limits: TurnLimits,
    /// Turns of the groups on their own, and of the rest as the base.
    turns: Turns,
    applied: Option<Applied>,
    /// Whose turn the coming step is; `None` for all that are not on their own.
    turn: Group,
    /// What `applied` will have lost by it.
    lost: f64,
    /// Of the tickets at work. They stay as they are while nothing at all is.
    accounts: HashMap<Digest, Account>,
}

/// The ticket that has the weights.
#[derive(Clone, Copy, Debug)]
struct Applied {
    ticket: Digest,
    /// Seconds that its steps cost more than if all had run together, while others waited.
    lost: f64,
}

/// What a ticket would save by being applied, in seconds.
#[derive(Debug, Default)]
struct Account {
    /// By the steps so far, up to the cost of a swap.
    saved: f64,
    /// By the coming step, if all its rows are in it.
    gain: f64,
    rows: usize,
    /// What applying and reverting it costs.
    swap: f64,
    /// A turn of steps like the coming one would save a swap, so another one would pay again.
    lasting: bool,
    /// The gain has its layout in it, which counts once.
    with_layout: bool,
    layout_counted: bool,
}

impl Account {
    /// Whether a swap has paid, with the coming step.
    fn earned(&self) -> bool {
        self.gain > 0.0 && self.lasting && self.saved + self.gain >= self.swap
    }
}

impl ByCost {
    pub fn new(costs: Costs, limits: TurnLimits) -> Self {
        Self {
            costs,
            limits,
            turns: Turns::new(limits),
            applied: None,
            turn: None,
            lost: 0.0,
            accounts: HashMap::new(),
        }
    }

    /// Whose step is next; see [`super::Policy::next`]. Nothing is booked before it [`Self::ran`].
    pub fn next(&mut self, loads: &[Load]) -> Option<Groups> {
        self.look_ahead(loads);
        self.lost = self.loss(loads);
        let units: Vec<Load> = loads.iter().map(|load| self.unit(load)).collect();
        let turn = self.turns.next(&units)?;
        if units.iter().all(|unit| unit.group == turn) {
            // Nobody else waits for its end: a newcomer need not either.
            self.turns.use_up();
        }
        self.turn = turn;
        Some(match turn {
            Some(_) => Groups::One(turn),
            None => {
                let own = units.iter().filter(|unit| unit.group.is_some());
                Groups::all_but(own.map(|unit| unit.group).collect())
            }
        })
    }

    /// The step ran: books it for those who were in it, by how much of what they could do was done.
    pub fn ran(&mut self, rows: &[(Group, usize)]) {
        self.turns.ran(rows);
        self.take_turn();
        for &(group, rows) in rows {
            let account = group.and_then(|ticket| self.accounts.get_mut(&ticket));
            if let Some(account) = account {
                let share = rows as f64 / account.rows.max(1) as f64;
                account.saved = (account.saved + share * account.gain).clamp(0.0, account.swap);
                account.layout_counted |= account.with_layout;
            }
        }
    }

    pub fn reverted(&mut self) {
        self.applied = None;
    }

    /// What the coming step would save each ticket. Who has nothing to do loses the account.
    fn look_ahead(&mut self, loads: &[Load]) {
        let total = loads.iter().map(|load| load.rows).sum();
        let alone = loads.len() == 1;
        let mut kept = HashMap::new();
        for load in loads {
            let Some(ticket) = load.group else { continue };
            let mut account = self.accounts.remove(&ticket).unwrap_or_default();
            account.swap = self.costs.swap(load.nonzeros);
            account.gain = self.costs.gain(load, total);
            account.rows = load.rows;
            // Alone it has no turns: it stays.
            let steps = self.limits.steps_of(load.rows) as f64;
            account.lasting = alone || account.gain * steps >= account.swap;
            // Beside others a ticket will be overlaid sooner or later; alone it may never be.
            account.with_layout = alone && !load.laid_out && !account.layout_counted;
            if account.with_layout {
                account.gain += self.costs.layout.of(load.nonzeros);
            }
            kept.insert(ticket, account);
        }
        self.accounts = kept;
    }

    /// What it will have cost that others wait for the ticket that is applied.
    fn loss(&self, loads: &[Load]) -> f64 {
        match (&self.applied, loads) {
            (None, _) | (_, [_]) => 0.0,
            (Some(applied), _) => {
                let account = self.accounts.get(&applied.ticket);
                let gain = account.map_or(0.0, |account| account.gain);
                applied.lost + (-gain).max(0.0)
            }
        }
    }

    /// The load as turns are taken: a group on its own as it is, any other as if it were the base's.
    fn unit(&self, load: &Load) -> Load {
        let account = load.group.and_then(|ticket| self.accounts.get(&ticket));
        let on_its_own = account.is_some_and(|account| match self.applied {
            Some(applied) if load.group == Some(applied.ticket) => {
                account.earned() || self.lost < account.swap
            }
            _ => account.earned(),
        });
        let group: Group = load.group.filter(|_| on_its_own);
        Load { group, ..*load }
    }

    /// The weights are whose turn it is; a ticket that has just got them pays for it.
    fn take_turn(&mut self) {
        let Some(ticket) = self.turn else {
            self.applied = None;
            return;
        };
        match &mut self.applied {
            Some(applied) if applied.ticket == ticket => applied.lost = self.lost,
            _ => {
                if let Some(account) = self.accounts.get_mut(&ticket) {
                    account.saved -= account.swap;
                }
                self.applied = Some(Applied { ticket, lost: 0.0 });
            }
        }
    }
}
