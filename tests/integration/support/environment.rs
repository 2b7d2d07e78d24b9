//! The environment of the tests: the binary, folders, golden files and the device.

use std::path::{Path, PathBuf};
use std::process::Command;

use tombola::model::{CacheDir, DeviceSpec};

/// The real binary.
pub fn tombola() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tombola"))
}

/// Sends the signal `name` to a process, by the shell's builtin, since some machines lack `kill`.
pub fn signal(name: &str, process: u32) {
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &process.to_string()])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

/// The user's cache folder, so that each machine fetches the default base once.
pub fn cache() -> CacheDir {
    let set = std::env::var_os("TOMBOLA_CACHE_DIR").map(PathBuf::from);
    CacheDir::at(set.unwrap_or_else(CacheDir::default_path))
}

/// A cache folder inside cargo's target folder, for the fingerprints of temporary models.
pub fn scratch() -> CacheDir {
    let folder = cargo_folder("CARGO_TARGET_TMPDIR", env!("CARGO_TARGET_TMPDIR"));
    CacheDir::at(folder.join("cache"))
}

/// A folder that cargo names: its path at run time if the variable is set, else at build time. The
/// two differ if the tests run on another machine than the build.
fn cargo_folder(variable: &str, at_build: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(at_build), PathBuf::from)
}

/// A file of this package.
pub fn package(path: &str) -> PathBuf {
    cargo_folder("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    package("tests/golden").join(name)
}

/// The parsed JSON file `name` of `tests/golden`.
pub fn golden_json(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(golden(name)).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

/// The token ids of a JSON array.
pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

/// The path as an argument of a command.
pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The device of the bases: `TOMBOLA_TEST_DEVICE` if set (`deploy/gpu-check` sets it), else the
/// CPU.
pub fn device() -> DeviceSpec {
    let named = std::env::var("TOMBOLA_TEST_DEVICE");
    named.map_or(DeviceSpec::Cpu, |name| name.parse().expect("a device"))
}
