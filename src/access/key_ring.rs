//! The keys that a server accepts, reloaded when their file changes.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use subtle::ConstantTimeEq as _;

use super::api_key::{ApiKey, KeyDigest};
use super::key_file::{KeyEntry, KeyFile, KeyFileError};
use super::limits::TenantLimits;
use super::scope::Scopes;
use super::tenant::Tenant;

/// Time between two looks at the key file.
const POLL: Duration = Duration::from_secs(1);

/// Name of the key that is given by flag or environment.
const SINGLE: &str = "api-key";

/// The keys of a running server. A file that becomes unusable leaves the last good keys in place,
/// and the log says so.
#[derive(Debug)]
pub struct KeyRing {
    file: Option<PathBuf>,
    /// The key that does not come from the file.
    single: Option<KeyEntry>,
    keys: RwLock<Arc<KeyFile>>,
    /// Stamp of the file when it was last read, whether it was good or not.
    seen: Mutex<Seen>,
}

/// A key that was accepted.
#[derive(Clone, Debug)]
pub struct AcceptedKey {
    /// Name of the key.
    pub name: Arc<str>,
    /// The tenant that it acts for; `None` is the operator.
    pub tenant: Option<Tenant>,
    /// What it may do.
    pub scopes: Scopes,
    /// Limits that the key file sets for the tenant.
    pub limits: TenantLimits,
}

/// Why a presented key is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedKey {
    /// No key has this secret.
    #[error("the API key is not valid")]
    Unknown,
    /// The key's validity has ended.
    #[error("the API key `{0}` has expired")]
    Expired(String),
}

/// Identity of a file's content, as far as the file system tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// State of the file when it was last looked at.
#[derive(Debug)]
struct Seen {
    /// Content that was read, and need not be read again.
    stamp: Option<Stamp>,
    /// Reason why the last read failed.
    failure: Option<String>,
}

impl KeyRing {
    /// The keys of `file`, and the `single` key, which has every scope.
    ///
    /// # Errors
    /// The file is unusable.
    pub fn open(file: Option<PathBuf>, single: Option<&ApiKey>) -> Result<Self, KeyFileError> {
        // The stamp first: a change during the read is seen at the next look.
        let seen = Seen {
            stamp: file.as_deref().and_then(|path| Stamp::of(path).ok()),
            failure: None,
        };
        let keys = file.as_deref().map(KeyFile::read).transpose()?;
        let single = single.map(|key| KeyEntry {
            name: SINGLE.to_owned(),
            sha256: KeyDigest::of(key.secret()),
            tenant: None,
            scopes: Scopes::ALL,
            created: 0,
            expires: None,
        });
        Ok(Self {
            file,
            single,
            keys: RwLock::new(Arc::new(keys.unwrap_or_default())),
            seen: Mutex::new(seen),
        })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.current().keys.len() + usize::from(self.single.is_some())
    }

    /// Whether there is no key, so that no request is accepted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks up a presented secret. Takes the same time whichever key matches, and if none does.
    ///
    /// # Errors
    /// No key has this secret, or it has expired.
    pub fn authenticate(&self, secret: &str, now: SystemTime) -> Result<AcceptedKey, RefusedKey> {
        let digest = KeyDigest::of(secret);
        let file = self.current();
        let mut found = None;
        for key in file.keys.iter().chain(&self.single) {
            if key.sha256.ct_eq(&digest).into() {
                found = Some(key);
            }
        }
        let key = found.ok_or(RefusedKey::Unknown)?;
        if key.is_expired(now) {
            return Err(RefusedKey::Expired(key.name.clone()));
        }
        let limits = key.tenant.as_ref().and_then(|t| file.tenants.get(t));
        Ok(AcceptedKey {
            name: key.name.as_str().into(),
            tenant: key.tenant.clone(),
            scopes: key.scopes,
            limits: limits.copied().unwrap_or_default(),
        })
    }

    /// Reads the file again if it has changed, or could not be read. An unusable file changes
    /// nothing; each reason is logged once.
    pub fn refresh(&self) {
        let Some(path) = &self.file else { return };
        // The stamp first: a change during the read is seen at the next look.
        let stamp = Stamp::of(path).ok();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.stamp.is_some() && seen.stamp == stamp {
            return;
        }
        let read = KeyFile::read(path);
        // What could not be read may be readable the next time, though it has not changed.
        let unread = matches!(read, Err(KeyFileError::Read { .. }));
        seen.stamp = stamp.filter(|_| !unread);
        let failure = read.as_ref().err().map(|error| with_causes(error));
        let repeated = unread && seen.failure == failure;
        seen.failure.clone_from(&failure);
        drop(seen);
        if let Ok(file) = read {
            tracing::info!(keys = file.keys.len(), "reloaded the API keys");
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            *keys = Arc::new(file);
        } else if let Some(failure) = failure.filter(|_| !repeated) {
            tracing::error!("{failure}; the keys that were read before stay in force");
        }
    }

    /// Starts a thread that calls [`KeyRing::refresh`] every second, and ends with the ring.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn watch(self: &Arc<Self>) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let ring: Weak<Self> = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("api-keys".to_owned())
            .spawn(move || {
                while let Some(ring) = ring.upgrade() {
                    ring.refresh();
                    drop(ring);
                    std::thread::sleep(POLL);
                }
            })?;
        Ok(())
    }

    fn current(&self) -> Arc<KeyFile> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The message of an error and of its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::access::{Scope, TenantError};

    fn add(path: &Path, name: &str, tenant: Option<&str>, expires: Option<u64>) -> ApiKey {
        let key = ApiKey::generate().unwrap();
        let tenant: Option<Result<Tenant, TenantError>> = tenant.map(str::parse);
        let entry = KeyEntry {
            name: name.to_owned(),
            sha256: KeyDigest::of(key.secret()),
            tenant: tenant.transpose().unwrap(),
            scopes: Scopes::from_iter([Scope::Infer]),
            created: 0,
            expires,
        };
        KeyFile::edit(path, |file| file.add(entry)).unwrap();
        key
    }

    #[test]
    fn a_presented_key_is_found_by_its_secret_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let web = add(&path, "web", Some("acme"), None);
        let old = add(&path, "old", None, Some(1));
        let limits = TenantLimits {
            max_requests: Some(2),
            ..TenantLimits::default()
        };
        let acme: Tenant = "acme".parse().unwrap();
        let set = |file: &mut KeyFile| Ok(file.tenants.insert(acme.clone(), limits));
        KeyFile::edit(&path, set).unwrap();
        let single: ApiKey = "operators-key".parse().unwrap();
        let ring = KeyRing::open(Some(path), Some(&single)).unwrap();
        assert_eq!(ring.len(), 3);
        let now = SystemTime::now();
        let found = ring.authenticate(web.secret(), now).unwrap();
        assert_eq!((&*found.name, found.limits), ("web", limits));
        assert_eq!(found.tenant, Some(acme));
        assert!(!found.scopes.allows(Scope::Admin));
        let found = ring.authenticate("operators-key", now).unwrap();
        assert!(found.scopes.allows(Scope::Admin) && found.tenant.is_none());
        for secret in ["", "web", &web.secret()[..20], &web.secret().to_uppercase()] {
            let refused = ring.authenticate(secret, now).unwrap_err();
            assert_eq!(refused, RefusedKey::Unknown);
        }
        let refused = ring.authenticate(old.secret(), now).unwrap_err();
        assert_eq!(refused, RefusedKey::Expired("old".to_owned()));
    }

    /// A folder with a key file, the ring of the file's first key, and that key beside one that was
    /// added since.
    fn changed() -> (TempDir, PathBuf, KeyRing, [ApiKey; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let first = add(&path, "first", None, None);
        let ring = KeyRing::open(Some(path.clone()), None).unwrap();
        let second = add(&path, "second", None, None);
        (folder, path, ring, [first, second])
    }

    #[test]
    fn a_changed_file_is_reloaded_and_a_broken_one_keeps_the_last_good_keys() {
        let (_folder, path, ring, [first, second]) = changed();
        let accepts = |key: &ApiKey| ring.authenticate(key.secret(), SystemTime::now()).is_ok();
        assert!(accepts(&first) && !accepts(&second));
        ring.refresh();
        assert!(accepts(&first) && accepts(&second));
        let good = std::fs::read(&path).unwrap();
        for broken in ["{", r#"{"keys": [{}]}"#] {
            std::fs::write(&path, broken).unwrap();
            ring.refresh();
            assert!(accepts(&first) && accepts(&second));
        }
        std::fs::remove_file(&path).unwrap();
        ring.refresh();
        assert!(accepts(&first));
        std::fs::write(&path, good).unwrap();
        KeyFile::edit(&path, |file| file.revoke("first")).unwrap();
        ring.refresh();
        assert!(!accepts(&first) && accepts(&second));
    }

    #[test]
    fn a_file_that_cannot_be_read_for_a_while_is_read_later() {
        let (folder, path, ring, [first, second]) = changed();
        let accepts = |key: &ApiKey| ring.authenticate(key.secret(), SystemTime::now()).is_ok();
        // What a failed read leaves behind: the stamp of a folder in its place, say, is not kept.
        let aside = folder.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        ring.refresh();
        let seen = ring.seen.lock().unwrap();
        assert!(seen.stamp.is_none() && seen.failure.is_some(), "{seen:?}");
        drop(seen);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        ring.refresh();
        assert!(accepts(&first) && accepts(&second));
    }

    #[test]
    fn a_start_without_a_usable_file_fails() {
        let error = KeyRing::open(Some("/nowhere/keys.json".into()), None).unwrap_err();
        assert!(error.to_string().contains("/nowhere/keys.json"), "{error}");
    }
}
