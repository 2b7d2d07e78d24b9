//! Limits of a tenant.

use serde::{Deserialize, Serialize};

/// What one tenant may use at most; `None` is no limit. They bound each tenant beside the limits
/// that the whole server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Concurrent completion requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<usize>,
    /// Tokens of unfinished requests: each choice counts its prompt and its `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queued_tokens: Option<usize>,
    /// Tickets that the tenant owns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tickets: Option<usize>,
    /// Size of the files of those tickets together, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ticket_mib: Option<u64>,
}

impl TenantLimits {
    /// These limits, with those of `defaults` where one is not set.
    pub fn or(self, defaults: Self) -> Self {
        Self {
            max_requests: self.max_requests.or(defaults.max_requests),
            max_queued_tokens: self.max_queued_tokens.or(defaults.max_queued_tokens),
            max_tickets: self.max_tickets.or(defaults.max_tickets),
            max_ticket_mib: self.max_ticket_mib.or(defaults.max_ticket_mib),
        }
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A limit that a tenant has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantLimit {
    #[error("{0} requests at once")]
    Requests(usize),
    #[error("{0} tokens of unfinished requests")]
    Tokens(usize),
    #[error("{0} tickets")]
    Tickets(usize),
    #[error("{0} MiB of tickets")]
    TicketMib(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_own_limit_wins_over_the_default() {
        let own = TenantLimits {
            max_requests: Some(8),
            ..TenantLimits::default()
        };
        let defaults = TenantLimits {
            max_requests: Some(2),
            max_tickets: Some(3),
            ..TenantLimits::default()
        };
        let both = own.or(defaults);
        assert_eq!((both.max_requests, both.max_tickets), (Some(8), Some(3)));
        assert!(both.max_queued_tokens.is_none() && !both.is_empty());
    }
}
