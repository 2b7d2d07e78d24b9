//! The file of API keys: its format, and its checks.
//!
//! ```json
//! {
//!   "keys": [
//!     {
//!       "name": "acme-web", "sha256": "9f86d0…", "tenant": "acme",
//!       "scopes": ["infer"], "created": 1764000000, "expires": 1790000000
//!     }
//!   ],
//!   "tenants": { "acme": { "max_requests": 8, "max_tickets": 20 } }
//! }
//! ```

mod edit;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::api_key::KeyDigest;
use super::limits::TenantLimits;
use super::name::{is_name, shortened};
use super::scope::{Scope, Scopes};
use super::tenant::Tenant;

/// Largest accepted file, in bytes: about 50,000 keys.
const MAX_BYTES: u64 = 16 << 20;

/// Keys, and the limits of tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// The keys, each with a name of its own.
    #[serde(default)]
    pub keys: Vec<KeyEntry>,
    /// Limits that override the server's defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<Tenant, TenantLimits>,
}

/// A key at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// The name by which the log and `tombola key` refer to it.
    pub name: String,
    /// Digest of the secret.
    pub sha256: KeyDigest,
    /// The tenant that the key acts for; `None` is the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// What the key may do.
    pub scopes: Scopes,
    /// Time of its creation, in seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// End of its validity, in seconds since 1970; `None` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

impl KeyEntry {
    /// Whether the key's validity has ended at the time `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let end = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        self.expires.and_then(end).is_some_and(|end| end <= now)
    }
}

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file cannot be written.
    #[error("cannot write the key file {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The file exceeds [`MAX_BYTES`].
    #[error("the key file {} is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// The file is not JSON of this format.
    #[error("the key file {} is malformed: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// A key of this name exists already.
    #[error("a key `{0}` exists already; revoke it first, or choose another name")]
    Exists(String),
    /// No key has this name.
    #[error("there is no key `{0}`")]
    Unknown(String),
    /// The entry contradicts itself or the rest of the file.
    #[error("{0}")]
    Invalid(String),
}

impl KeyFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| {
            let path = path.to_owned();
            KeyFileError::Read { path, source }
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        if metadata.len() > MAX_BYTES {
            let path = path.to_owned();
            return Err(KeyFileError::TooLarge { path });
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let malformed = |reason: String| {
            let path = path.to_owned();
            KeyFileError::Malformed { path, reason }
        };
        let file: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        file.check().map_err(|error| malformed(error.to_string()))?;
        Ok(file)
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The name is taken or malformed, or the entry contradicts itself.
    pub fn add(&mut self, entry: KeyEntry) -> Result<(), KeyFileError> {
        if self.keys.iter().any(|key| key.name == entry.name) {
            return Err(KeyFileError::Exists(entry.name));
        }
        self.keys.push(entry);
        self.check()
    }

    /// Removes a key.
    ///
    /// # Errors
    /// No key has this name.
    pub fn revoke(&mut self, name: &str) -> Result<KeyEntry, KeyFileError> {
        let place = self.keys.iter().position(|key| key.name == name);
        let place = place.ok_or_else(|| KeyFileError::Unknown(shortened(name)))?;
        Ok(self.keys.remove(place))
    }

    /// Sets the limits of a tenant.
    ///
    /// # Errors
    /// Another tenant's name differs in case only.
    pub fn set_limits(&mut self, tenant: Tenant, limits: TenantLimits) -> Result<(), KeyFileError> {
        self.tenants.insert(tenant, limits);
        self.check()
    }

    /// Checks each entry, and that names, secrets and tenants can be told apart.
    fn check(&self) -> Result<(), KeyFileError> {
        let invalid = |problem: String| Err(KeyFileError::Invalid(problem));
        let (mut names, mut digests) = (BTreeSet::new(), BTreeSet::new());
        for key in &self.keys {
            let name = shortened(&key.name);
            if !is_name(&key.name) {
                return invalid(format!(
                    "the key name {name:?} is not 1 to 64 letters, digits, `.`, `_` or `-`, \
                     beginning with a letter or digit"
                ));
            }
            if !names.insert(&key.name) {
                return invalid(format!("two keys have the name `{name}`"));
            }
            if !digests.insert(key.sha256.to_string()) {
                return invalid(format!("the key `{name}` has the secret of another key"));
            }
            if key.scopes.is_empty() {
                return invalid(format!("the key `{name}` has no scope"));
            }
            if let Some(tenant) = key
                .tenant
                .as_ref()
                .filter(|_| key.scopes.allows(Scope::Admin))
            {
                return invalid(format!(
                    "the key `{name}` of tenant `{tenant}` has the scope `admin`, which is the \
                     operator's: give it single scopes, or no tenant"
                ));
            }
        }
        // Tenants have folders, and some file systems ignore case.
        let mut spellings = BTreeMap::new();
        let tenants = self.keys.iter().filter_map(|key| key.tenant.as_ref());
        for tenant in tenants.chain(self.tenants.keys()) {
            let lower = tenant.as_str().to_ascii_lowercase();
            let first = spellings.entry(lower).or_insert(tenant);
            if *first != tenant {
                return invalid(format!(
                    "the tenants `{first}` and `{tenant}` differ in case only"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
