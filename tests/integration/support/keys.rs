//! Key files for the real binary.

use std::fs;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::environment::utf8;

/// A key file: one key of each named tenant, and the operator's.
pub struct Keys {
    folder: TempDir,
}

impl Keys {
    /// Writes the file.
    pub fn new(tenants: &[&str]) -> Self {
        let entry = |name: &str, scopes: &[&str]| {
            let digest = Sha256::digest(Self::of(name));
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"name": name, "sha256": digest, "scopes": scopes})
        };
        let mut keys = vec![entry("operator", &["admin"])];
        for tenant in tenants {
            let mut key = entry(tenant, &["infer", "tickets:read", "tickets:write"]);
            key["tenant"] = (*tenant).into();
            keys.push(key);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let text = json!({ "keys": keys }).to_string();
        fs::write(folder.path().join("keys.json"), text).expect("the key file");
        Self { folder }
    }

    /// The key of a tenant, or of `operator`.
    pub fn of(name: &str) -> String {
        format!("the-secret-key-of-{name}")
    }

    /// The flag that names the file, and its value.
    pub fn flag(&self) -> [String; 2] {
        let path = self.folder.path().join("keys.json");
        ["--api-keys".to_owned(), utf8(&path).to_owned()]
    }
}
