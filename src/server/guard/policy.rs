//! The policy of a server: who may use it, and what a route requires.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::Request;
use axum::http::{HeaderMap, header};

use super::browsers::BrowserRules;
use super::media_type::BodyKind;
use crate::access::{KeyRing, Scope, TenantLimits};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, Unidentified};

/// Header in which Anthropic's clients send their key.
const X_API_KEY: &str = "x-api-key";

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

impl AccessOptions {
    /// Who sends a request with these headers.
    ///
    /// # Errors
    /// The server has keys, and the request presents none, or one that is not accepted.
    pub(in crate::server) fn identify(&self, headers: &HeaderMap) -> Result<Caller, Unidentified> {
        let Some(keys) = &self.keys else {
            return Ok(Caller::keyless());
        };
        let secret = secret(headers)?;
        let key = keys.authenticate(secret, SystemTime::now())?;
        Ok(Caller::with_key(key, self.tenant_limits))
    }

    /// Checks a request against the rule of its route. A valid key makes any `Host` acceptable: a
    /// web page under a rebound name has no key to send.
    ///
    /// # Errors
    /// The refusal.
    pub(in crate::server) fn admit(
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

/// The key that these headers present: `Authorization: Bearer KEY`, or else `x-api-key: KEY`, as
/// Anthropic's clients send it.
fn secret(headers: &HeaderMap) -> Result<&str, Unidentified> {
    let bearer = headers.contains_key(header::AUTHORIZATION);
    let (name, malformed) = if bearer {
        (header::AUTHORIZATION.as_str(), Unidentified::NotBearer)
    } else {
        (X_API_KEY, Unidentified::NotOneKey)
    };
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(Unidentified::NoKey)?;
    let Ok(text) = value.to_str() else {
        return Err(malformed);
    };
    if values.next().is_some() {
        return Err(malformed);
    }
    match text.trim().split_once(' ') {
        Some((scheme, secret)) if bearer && scheme.eq_ignore_ascii_case("bearer") => {
            Ok(secret.trim())
        }
        None if !bearer => Ok(text.trim()),
        _ => Err(malformed),
    }
}
