//! Tenants: the parties that a server keeps apart.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::name::{MAX_BYTES, is_name, shortened};

/// Name of a tenant: 1 to 64 of `[A-Za-z0-9._-]`, beginning with a letter or digit. Clones share
/// the text. `Option<Tenant>` is `None` for the operator, and for everyone if there are no keys.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(Arc<str>);

/// A malformed tenant name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tenant name {0:?} is not 1 to {MAX_BYTES} letters, digits, `.`, `_` or `-`, \
     beginning with a letter or digit"
)]
pub struct TenantError(String);

impl Tenant {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = TenantError;

    fn from_str(name: &str) -> Result<Self, TenantError> {
        if is_name(name) {
            Ok(Self(name.into()))
        } else {
            Err(TenantError(shortened(name)))
        }
    }
}

impl TryFrom<String> for Tenant {
    type Error = TenantError;

    fn try_from(name: String) -> Result<Self, TenantError> {
        name.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.as_str().to_owned()
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_name_can_never_be_a_path() {
        for name in ["acme", "team-1", "A.b_c", "0", &"a".repeat(64)] {
            assert_eq!(name.parse::<Tenant>().unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a\\b",
            "a b",
            "é",
            &"a".repeat(65),
        ] {
            assert!(name.parse::<Tenant>().is_err(), "{name}");
        }
    }
}
