//! Accounts: the parties that share the queue and the engine's work.

use super::plan::Group;
use super::request::Request;
use crate::access::Tenant;
use crate::registry::Lease;

/// Party that a request is counted for: its tenant, or else the group of its ticket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// All requests of a tenant.
    Tenant(Tenant),
    /// All requests without a tenant for one ticket, or for the base.
    Group(Group),
}

impl Default for Account {
    /// The account of the base's requests without a tenant.
    fn default() -> Self {
        Self::Group(None)
    }
}

impl Account {
    /// Account of a request.
    pub fn of(request: &Request) -> Self {
        match &request.tenant {
            Some(tenant) => Self::Tenant(tenant.clone()),
            None => Self::Group(request.ticket.as_ref().map(group_of)),
        }
    }
}

/// Group of a leased ticket: the digest of its content.
fn group_of(lease: &Lease) -> crate::ticket::Digest {
    lease.ticket().digest()
}
