//! The caller of a request, as the routes see it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::extract::FromRequestParts;
use axum::http::Extensions;
use axum::http::request::Parts;

use super::error::ApiError;
use crate::access::{AcceptedKey, Scope, Scopes, Tenant, TenantLimits};

/// Who sends a request. The guard of a route puts it into the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The caller's tenant; `None` for the operator, and for everyone if there are no keys.
    pub tenant: Option<Tenant>,
    /// Name of the caller's key; `None` if there are no keys.
    pub key: Option<Arc<str>>,
    /// What the caller may do. The default is nothing.
    pub scopes: Scopes,
    /// Limits of the tenant, and of nobody else.
    pub limits: TenantLimits,
    /// Whether the operator's routes are served on the port of this request.
    pub on_admin_port: bool,
    /// What the audit line of the request shall name.
    pub trail: Trail,
}

impl Caller {
    /// The caller of the request with these extensions; without one, a caller who may do nothing.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Everyone, on a server without keys.
    pub(super) fn keyless() -> Self {
        Self {
            scopes: Scopes::ALL,
            ..Self::default()
        }
    }

    /// The holder of a key. `defaults` are the limits of tenants that the key file does not limit.
    pub(super) fn with_key(key: AcceptedKey, defaults: TenantLimits) -> Self {
        let limits = match key.tenant {
            Some(_) => key.limits.or(defaults),
            None => TenantLimits::default(),
        };
        Self {
            tenant: key.tenant,
            key: Some(key.name),
            scopes: key.scopes,
            limits,
            ..Self::default()
        }
    }

    /// Refuses a caller without `scope`.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.allows(scope) {
            return Ok(());
        }
        let key = self.key.as_deref().unwrap_or_default().to_owned();
        Err(ApiError::Forbidden { key, scope })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// What an administrative action is about, noted by its handler as it learns it. Clones note for
/// the same line.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Subject>);

#[derive(Debug, Default)]
struct Subject {
    ticket: OnceLock<String>,
    digest: OnceLock<String>,
}

impl Trail {
    /// Notes the name of the ticket. Only the first name counts.
    pub fn ticket(&self, name: &str) {
        self.0
            .ticket
            .get_or_init(|| name.chars().take(256).collect());
    }

    /// Notes the digest of the ticket. Only the first digest counts.
    pub fn digest(&self, digest: impl ToString) {
        self.0.digest.get_or_init(|| digest.to_string());
    }

    /// The noted name of the ticket.
    pub fn noted_ticket(&self) -> Option<&str> {
        self.0.ticket.get().map(String::as_str)
    }

    /// The noted digest of the ticket.
    pub fn noted_digest(&self) -> Option<&str> {
        self.0.digest.get().map(String::as_str)
    }
}
