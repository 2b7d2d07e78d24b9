//! The guard before each route: who calls, from where, and whether the route is theirs.

mod browsers;
mod media_type;

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::audit::Entry;
use super::caller::Caller;
use super::error::ApiError;
use super::state::AppState;
use crate::access::{KeyRing, RefusedKey, Scope, TenantLimits};

pub(super) use browsers::cors;
pub use browsers::{BrowserRules, BrowserRulesError};
pub use media_type::BodyKind;

/// Who may use a server. The default is everyone who reaches the loopback address without a foreign
/// web page's help.
#[derive(Debug, Default)]
pub struct AccessOptions {
    /// The accepted keys; `None` accepts everyone.
    pub keys: Option<Arc<KeyRing>>,
    /// Which web pages may send requests.
    pub browsers: BrowserRules,
    /// Limits of each tenant that the key file does not limit.
    pub tenant_limits: TenantLimits,
}

/// What a route requires of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: probes call it.
    Open,
    /// Any valid key, if the server has keys.
    AnyKey,
    /// A key with this scope, if the server has keys.
    Scope(Scope),
}

impl From<Scope> for Access {
    fn from(scope: Scope) -> Self {
        Self::Scope(scope)
    }
}

/// What the guard of a route enforces.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What the route requires of its caller.
    pub access: Access,
    /// The body that the route takes.
    pub body: BodyKind,
    /// Name of the route's action in the audit log, if it is administrative.
    pub action: Option<&'static str>,
}

impl Rule {
    /// Rule of requests without a route.
    pub const NO_ROUTE: Self = Self {
        access: Access::AnyKey,
        body: BodyKind::Any,
        action: None,
    };
}

/// State of the guard of one route.
#[derive(Clone)]
pub struct Guard {
    pub state: Arc<AppState>,
    pub rule: Rule,
    /// Whether the route is reached through a port that serves the operator's routes.
    pub on_admin_port: bool,
}

/// Middleware of a route: admits its caller and adds it to the request, or answers with the
/// refusal.
pub async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let rule = guard.rule;
    let access = &guard.state.access;
    let identity = access.identify(request.headers());
    let mut caller = identity.as_ref().cloned().unwrap_or_default();
    caller.on_admin_port = guard.on_admin_port;
    if let Some(ticket) = request.uri().path().strip_prefix("/v1/tickets/") {
        caller.trail.ticket(ticket);
    }
    let entry = rule
        .action
        .map(|action| Entry::begin(action, caller.clone(), &request));
    let response = match access.admit(&identity, &request, rule) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    if let Some(entry) = entry {
        entry.end(&response);
    }
    response
}

impl AccessOptions {
    /// Who sends a request with these headers.
    ///
    /// # Errors
    /// The server has keys, and the request presents none, or one that is not accepted.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<Caller, Unidentified> {
        let Some(keys) = &self.keys else {
            return Ok(Caller::keyless());
        };
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(Unidentified::NoKey)?;
        let text = value.to_str().map_err(|_| Unidentified::NotBearer)?;
        let secret = match text.trim().split_once(' ') {
            Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => secret.trim(),
            _ => return Err(Unidentified::NotBearer),
        };
        if values.next().is_some() {
            return Err(Unidentified::NotBearer);
        }
        let key = keys.authenticate(secret, SystemTime::now())?;
        Ok(Caller::with_key(key, self.tenant_limits))
    }

    /// Checks a request against the rule of its route. A valid key makes any `Host` acceptable: a
    /// web page under a rebound name has no key to send.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit(
        &self,
        identity: &Result<Caller, Unidentified>,
        request: &Request,
        rule: Rule,
    ) -> Result<(), ApiError> {
        if rule.access == Access::Open {
            return Ok(());
        }
        let has_key = self.keys.is_some() && identity.is_ok();
        self.browsers.check(request, has_key)?;
        let caller = identity
            .as_ref()
            .map_err(|error| ApiError::InvalidApiKey(error.clone()))?;
        if let Access::Scope(scope) = rule.access {
            caller.require(scope)?;
        }
        rule.body.check(request.headers())
    }
}

/// Why the caller of a request is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// The request presents no key.
    #[error("this server needs an API key; send it as `Authorization: Bearer KEY`")]
    NoKey,
    /// The header does not hold one key.
    #[error("the `Authorization` header is not `Bearer KEY`")]
    NotBearer,
    /// The key is not accepted.
    #[error(transparent)]
    Refused(#[from] RefusedKey),
}

impl Unidentified {
    /// Value of `WWW-Authenticate`.
    pub fn challenge(&self) -> &'static str {
        match self {
            Self::NoKey => r#"Bearer realm="tombola""#,
            Self::NotBearer => r#"Bearer realm="tombola", error="invalid_request""#,
            Self::Refused(_) => r#"Bearer realm="tombola", error="invalid_token""#,
        }
    }
}
