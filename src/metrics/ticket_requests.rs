//! Requests by ticket. Tickets are as many as there are files, but clients make up compositions, so
//! the series of those are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounterVec, Result};

use super::TENANT;
use super::registrar::Registrar;

/// Most compositions of one owner that have a series of their own.
const MAX_COMPOSITIONS: usize = 64;
/// Name that counts an owner's further compositions. No ticket can have it.
const FURTHER: &str = "(composed)";

/// Counter of the requests for each ticket and composition.
#[derive(Debug)]
pub(super) struct TicketRequests {
    counter: IntCounterVec,
    /// Compositions that have a series, by owner.
    compositions: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl TicketRequests {
    pub(super) fn new(registrar: &Registrar) -> Result<Self> {
        let counter = registrar.counter_vecs(
            "ticket_requests_total",
            "Requests for a ticket or a composition, by its name and the tenant that owns it, if \
             one does.",
            &[TENANT, "ticket"],
        )?;
        Ok(Self {
            counter,
            compositions: Mutex::default(),
        })
    }

    /// Counts a request. A composition is named by its text.
    pub(super) fn requested(&self, owner: &str, name: &str) {
        let name = match is_composition(name) && !self.has_series(owner, name) {
            true => FURTHER,
            false => name,
        };
        self.counter.with_label_values(&[owner, name]).inc();
    }

    fn compositions(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        let compositions = self.compositions.lock();
        compositions.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the composition has a series, or may have one from now on.
    fn has_series(&self, owner: &str, composition: &str) -> bool {
        let mut owners = self.compositions();
        let own = owners.entry(owner.to_owned()).or_default();
        own.contains(composition)
            || (own.len() < MAX_COMPOSITIONS && own.insert(composition.to_owned()))
    }

    /// Removes the series of a deleted ticket and of the compositions that name it.
    pub(super) fn deleted(&self, owner: &str, alias: &str) {
        // Fails if the ticket was never requested, hence has no series.
        let _ = self.counter.remove_label_values(&[owner, alias]);
        let mut owners = self.compositions();
        // Tenants compose their own tickets and the public ones.
        let seen_by = |composer: &str| owner.is_empty() || composer == owner;
        for (composer, own) in owners.iter_mut().filter(|(composer, _)| seen_by(composer)) {
            own.retain(|composition| {
                let gone = parts(composition).any(|part| part == alias);
                if gone {
                    let _ = self.counter.remove_label_values(&[composer, composition]);
                }
                !gone
            });
        }
    }
}

fn is_composition(name: &str) -> bool {
    name.contains(['+', '@'])
}

/// Names of the tickets in a composition's text, `sql+terse@0.5`.
fn parts(composition: &str) -> impl Iterator<Item = &str> {
    let parts = composition.split('+');
    parts.map(|part| part.split_once('@').map_or(part, |(alias, _)| alias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn compositions_have_series_up_to_a_bound_until_a_part_is_deleted() {
        let metrics = Metrics::new(16).unwrap();
        let server = &metrics.server;
        for i in 0..MAX_COMPOSITIONS + 2 {
            server.ticket_requested("", &format!("sql@0.{i:03}"));
        }
        server.ticket_requested("acme", "sql+own@0.5");
        server.ticket_requested("", "sql@0.001");
        let has = |line: &str| {
            let text = metrics.render().unwrap();
            text.lines()
                .any(|found| found == format!("tombola_ticket_requests_total{line}"))
        };
        assert!(has(r#"{ticket="sql@0.001"} 2"#));
        assert!(has(r#"{ticket="(composed)"} 2"#));
        assert!(has(r#"{tenant="acme",ticket="sql+own@0.5"} 1"#));
        server.ticket_deleted("other", "own");
        server.ticket_deleted("other", "sql");
        assert!(has(r#"{tenant="acme",ticket="sql+own@0.5"} 1"#));
        server.ticket_deleted("", "sql");
        assert!(!metrics.render().unwrap().contains("sql"));
        server.ticket_requested("", "terse@0.5");
        assert!(has(r#"{ticket="terse@0.5"} 1"#));
    }
}
