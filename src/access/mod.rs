//! Who may do what: the tenants that a server keeps apart. Plain data, no HTTP.

mod tenant;

pub use tenant::{Tenant, TenantError};
