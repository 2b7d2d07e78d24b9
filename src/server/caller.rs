//! The caller of a request, as the routes see it.

use std::sync::Arc;

use axum::http::Extensions;

use super::audit::Trail;
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
