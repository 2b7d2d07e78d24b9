//! Who may do what: keys, their scopes, the tenants that a server keeps apart, and the shares of
//! what they use together. Plain data, no HTTP.

mod api_key;
mod holdings;
mod key_file;
mod key_ring;
mod limits;
mod name;
mod scope;
mod tenant;

pub use api_key::{ApiKey, ApiKeyError, KeyDigest};
pub use holdings::{Holdings, Shortage, within_share};
pub use key_file::{KeyEntry, KeyFile, KeyFileError};
pub(crate) use key_ring::with_causes;
pub use key_ring::{AcceptedKey, KeyRing, RefusedKey};
pub use limits::{TenantLimit, TenantLimits};
pub use scope::{Scope, ScopeError, Scopes};
pub use tenant::{Tenant, TenantError};
