//! Policy that runs all groups together or some of them apart, whichever costs less.
//!
//! By default all groups run together, each ticket overlaid on its own rows. Each ticket has an
//! account of the seconds that its steps would have cost less (or did cost less) if its group had
//! run apart, with the ticket applied. Once that balance reaches the cost of a swap, and a turn
//! would save as much again, the group runs apart: it takes turns with the rest, which stay
//! together, and pays for each swap from its account. This is the ski-rental rule: while work keeps
//! coming, a ticket by itself costs at most twice the optimum in hindsight, and tickets do not
//! thrash, since each swap has to be earned again. The bound ends at an idle gap: the engine then
//! reverts the applied ticket ([`ByCost::reverted`]), and the next request pays for a swap again.
//!
//! While other groups wait, a turn ends when it is used up, or when the steps of the applied ticket
//! have cost more than steps together by the cost of its next swap. The longest-waiting group is
//! next, so no ticket starves.
//!
//! # Example
//!
//! A ticket adds 0.6 ms to each step that it is overlaid on, and its swap (apply and revert) costs
//! 9 ms.
//!
//! - **Alone.** An applied ticket adds nothing to a step, so each overlaid step earns 0.6 ms. After
//!   14 steps the balance is 8.4 ms, and the 15th would complete the 9 ms: it runs with the ticket
//!   applied. The swap takes 9 ms off the balance, which is 0 ms after that step. Altogether the
//!   ticket has cost 8.4 + 9 = 17.4 ms; in hindsight, 9 ms would have been the least.
//! - **Two groups.** A second group arrives, and both decode. A step of both takes 13.7 ms and a
//!   step of one 13 ms, so running apart saves 0.7 + 0.6 ms and costs 13 ms: a saving of −11.7 ms
//!   per step. The 9 ms of the next swap are lost at once, so the coming step runs both together.

use std::collections::HashMap;

use super::{TurnLimits, Turns};
use crate::engine::costs::{Costs, Load};
use crate::engine::plan::{Group, Groups};
use crate::ticket::Digest;

/// Decides by cost, step by step.
#[derive(Debug)]
pub struct ByCost {
    costs: Costs,
    /// Turns of the groups that run apart, and of all others as the base's group.
    turns: Turns,
    /// Accounts of the tickets that had work when [`Self::next`] was last called.
    accounts: HashMap<Digest, Account>,
    /// The ticket in the weights.
    applied: Option<Applied>,
    /// What [`Self::applied`] becomes if the step that [`Self::next`] chose is planned.
    next_applied: Option<Applied>,
}

/// The ticket in the weights.
#[derive(Clone, Copy, Debug)]
struct Applied {
    ticket: Digest,
    /// Seconds that its steps cost more than steps together would have, while others waited.
    lost: f64,
}

/// Savings of a ticket.
#[derive(Debug, Default)]
struct Account {
    /// Seconds saved by the steps so far, up to the cost of a swap.
    balance: f64,
    /// Whether the balance has counted the ticket's layout, which counts once.
    layout_counted: bool,
    /// The step that is decided next.
    forecast: Forecast,
}

/// Predicted savings if a ticket's group runs apart in the next step.
#[derive(Debug, Default)]
struct Forecast {
    /// Tokens of the group, if the step takes all of them.
    rows: usize,
    /// Seconds saved by those rows; negative if the group is better off with the others.
    savings: f64,
    /// Whether the savings include the cost of the layout.
    counts_layout: bool,
    /// Seconds of applying and reverting the ticket.
    swap: f64,
}

impl ByCost {
    /// A policy with no ticket applied and all balances at 0.
    pub fn new(costs: Costs, limits: TurnLimits) -> Self {
        Self {
            costs,
            turns: Turns::new(limits),
            accounts: HashMap::new(),
            applied: None,
            next_applied: None,
        }
    }

    /// Chooses the groups of the next step; see [`super::Policy::next`]. Only
    /// [`Self::record_step`] records the step.
    pub fn next(&mut self, loads: &[Load]) -> Option<Groups> {
        let alone = loads.len() == 1;
        self.forecast(loads);
        let lost = if alone { 0.0 } else { self.lost() };
        let units: Vec<Load> = loads
            .iter()
            .map(|load| Load {
                group: load
                    .group
                    .filter(|&ticket| self.runs_apart(ticket, alone, lost)),
                ..*load
            })
            .collect();
        let turn = self.turns.next(&units)?;
        if units.iter().all(|unit| unit.group == turn) {
            // No other group waits for the end of this turn, so a newcomer need not either.
            self.turns.use_up();
        }
        self.next_applied = turn.map(|ticket| Applied {
            ticket,
            lost: if self.is_applied(ticket) { lost } else { 0.0 },
        });
        Some(match turn {
            Some(_) => Groups::One(turn),
            None => {
                let apart = units.iter().filter(|unit| unit.group.is_some());
                Groups::all_but(apart.map(|unit| unit.group).collect())
            }
        })
    }

    /// Records the planned step, with its number of tokens per group: each ticket earns
    /// the part of its forecast that was planned, and a newly applied one pays for its swap.
    pub fn record_step(&mut self, rows: &[(Group, usize)]) {
        self.turns.record_step(rows);
        if let Some(Applied { ticket, .. }) = self.next_applied
            && !self.is_applied(ticket)
            && let Some(account) = self.accounts.get_mut(&ticket)
        {
            account.balance -= account.forecast.swap;
        }
        self.applied = self.next_applied;
        for &(group, rows) in rows {
            if let Some(account) = group.and_then(|ticket| self.accounts.get_mut(&ticket)) {
                account.earn(rows);
            }
        }
    }

    /// Records that the applied ticket was reverted outside of a step.
    pub fn reverted(&mut self) {
        self.applied = None;
    }

    fn is_applied(&self, ticket: Digest) -> bool {
        self.applied.is_some_and(|applied| applied.ticket == ticket)
    }

    /// Forecasts the next step of each ticket with work. Idle tickets lose their balance.
    fn forecast(&mut self, loads: &[Load]) {
        let total = loads.iter().map(|load| load.rows).sum();
        let alone = loads.len() == 1;
        let mut kept = HashMap::new();
        for load in loads {
            let Some(ticket) = load.group else { continue };
            let mut account = self.accounts.remove(&ticket).unwrap_or_default();
            let mut savings = self.costs.apply_savings(load, total);
            // A ticket beside others needs its layout sooner or later; a ticket alone may never.
            let counts_layout = alone && !load.has_layout && !account.layout_counted;
            if counts_layout {
                savings += self.costs.layout.of(load.nonzeros);
            }
            account.forecast = Forecast {
                rows: load.rows,
                savings,
                counts_layout,
                swap: self.costs.swap(load.nonzeros),
            };
            kept.insert(ticket, account);
        }
        self.accounts = kept;
    }

    /// Seconds that the applied ticket will have lost by the next step, if others wait.
    fn lost(&self) -> f64 {
        self.applied.map_or(0.0, |applied| {
            let account = self.accounts.get(&applied.ticket);
            let savings = account.map_or(0.0, |account| account.forecast.savings);
            applied.lost + (-savings).max(0.0)
        })
    }

    /// Whether a ticket's group takes separate turns. `lost` is [`Self::lost`].
    fn runs_apart(&self, ticket: Digest, alone: bool, lost: f64) -> bool {
        self.accounts.get(&ticket).is_some_and(|account| {
            account.earned_swap(self.turns.limits(), alone)
                || self.is_applied(ticket) && lost < account.forecast.swap
        })
    }
}

impl Account {
    /// Whether the next step brings the balance up to a swap, and a turn of such steps would save
    /// another swap. A group alone has no turns: its ticket stays applied.
    fn earned_swap(&self, limits: TurnLimits, alone: bool) -> bool {
        let Forecast {
            rows,
            savings,
            swap,
            ..
        } = self.forecast;
        let lasts = alone || savings * limits.steps_of(rows) as f64 >= swap;
        savings > 0.0 && lasts && self.balance + savings >= swap
    }

    /// Adds the forecast savings of `rows` of the rows.
    fn earn(&mut self, rows: usize) {
        let share = rows as f64 / self.forecast.rows.max(1) as f64;
        let balance = self.balance + share * self.forecast.savings;
        self.balance = balance.clamp(0.0, self.forecast.swap);
        self.layout_counted |= self.forecast.counts_layout;
    }
}
