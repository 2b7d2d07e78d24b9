//! The caller of a request, as the routes see it.

use axum::http::Extensions;

use crate::access::Tenant;

/// Who sends a request. The layer that checks keys puts it into the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The caller's tenant; `None` for the operator, and for everyone if there are no keys.
    pub tenant: Option<Tenant>,
}

impl Caller {
    /// The caller of the request with these extensions; without one, a caller without a tenant.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }
}
