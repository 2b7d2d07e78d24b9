//! The caller of a request, as the routes see it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::Extensions;
use axum::http::request::Parts;

use super::audit::{Action, Trail};
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
    /// Address that the request comes from, if it comes from a socket.
    pub peer: Option<SocketAddr>,
    /// What the audit line of the request shall tell.
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

    /// Notes where a request with these extensions comes from.
    pub(super) fn came_from(&mut self, extensions: &Extensions) {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>();
        self.peer = peer.map(|ConnectInfo(address)| *address);
    }

    /// Begins the audit line of an action of this caller.
    pub fn begin(&self, action: &'static str) {
        self.trail.begin(Action {
            name: action,
            key: self.key.clone(),
            tenant: self.tenant.clone(),
            peer: self.peer,
        });
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
