//! The ticket that a request is about.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::caller::Caller;
use super::error::ApiError;
use super::quota::{StorePermit, Stored};
use super::state::AppState;
use crate::access::Tenant;
use crate::registry::{Generation, Name, RegistryError};

/// A ticket as a caller names it, in the path of a route (which this type extracts) or in a body.
/// The audit line of the request names it too.
pub struct NamedTicket {
    pub caller: Caller,
    /// An alias. To read a ticket, `alias@digest` and a digest name it as well.
    pub alias: String,
}

impl NamedTicket {
    /// The ticket that the caller names in a body.
    pub fn new(caller: Caller, alias: String) -> Self {
        caller.trail.ticket(&alias);
        Self { caller, alias }
    }

    /// Tenant of the caller.
    pub fn tenant(&self) -> Option<&Tenant> {
        self.caller.tenant.as_ref()
    }

    /// Name among the caller's own tickets, to create or change it.
    pub fn name(&self) -> Name<'_> {
        Name::new(self.tenant(), &self.alias)
    }

    /// The ticket that the caller means, of its own or the public ones.
    pub fn find(&self, state: &AppState) -> Option<Arc<Generation>> {
        state.registry.get(self.tenant(), &self.alias)
    }

    /// Admits a file of that size to those that the caller owns, to become this ticket, until the
    /// returned permit is dropped: after it is published.
    ///
    /// # Errors
    /// The caller's tenant owns as much as it may.
    pub fn store(&self, state: &AppState, bytes: u64) -> Result<StorePermit, ApiError> {
        let stored = || {
            let files = state.registry.stored_beside(self.name());
            Stored {
                tickets: files.count,
                bytes: files.bytes,
            }
        };
        state.quota.store(&self.caller, stored, bytes)
    }

    /// Runs `remove` on the name, notes the removed content for the audit line, and drops the
    /// ticket's series.
    ///
    /// # Errors
    /// Those of `remove`.
    pub fn take_away(
        &self,
        state: &AppState,
        remove: impl FnOnce(Name<'_>) -> Result<Arc<Generation>, RegistryError>,
    ) -> Result<(), RegistryError> {
        let name = self.name();
        let removed = remove(name)?;
        self.caller.trail.done(removed.digest());
        let metrics = &state.metrics.server;
        metrics.ticket_deleted(name.owner_label(), name.alias);
        Ok(())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamedTicket {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(alias) = Path::from_request_parts(parts, state).await?;
        Ok(Self::new(Caller::of(&parts.extensions), alias))
    }
}
