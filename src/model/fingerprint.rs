//! The base's identity: a digest over its parameters, the same for a GGUF file and for the folder
//! that it was dequantised to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::checkpoint::Checkpoint;
use super::error::ModelError;
use super::fetch::CacheDir;
use super::weights::parameters;
use crate::kernels::digest::hash_values;
use crate::ticket::Digest;

/// SHA-256 over the parameters in byte order of their checkpoint names. Each adds: the length of
/// its name as u64, the name, its rank as u64, its dimensions as u64, its values as f32; all
/// little-endian, query and key rows in the checkpoint's order, a tied head left out.
///
/// Found again in the cache by the files' paths, sizes and times of change, and by the parameters
/// that the configuration asks of them.
pub fn fingerprint(
    checkpoint: &Checkpoint,
    cache: &CacheDir,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Digest, ModelError> {
    if let Some(synthetic) = checkpoint.synthetic_fingerprint() {
        return Ok(synthetic);
    }
    let parameters = parameters(checkpoint.config());
    let entry = cache_entry(checkpoint.files(), &parameters, cache)?;
    if let Some(known) = fs::read_to_string(&entry)
        .ok()
        .and_then(|text| text.trim().parse().ok())
    {
        return Ok(known);
    }
    let digest = compute(checkpoint, &parameters, progress)?;
    // A cache that cannot be written costs time at the next start, nothing else.
    if let Err(error) = store(&entry, digest) {
        tracing::warn!("{}: {error}", entry.display());
    }
    Ok(digest)
}

fn compute(
    checkpoint: &Checkpoint,
    parameters: &BTreeMap<String, Vec<usize>>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Digest, ModelError> {
    let mut hasher = Sha256::new();
    for (done, (name, shape)) in parameters.iter().enumerate() {
        progress(done, parameters.len());
        let tensor = checkpoint.load(name, shape)?;
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update((shape.len() as u64).to_le_bytes());
        for &dimension in shape {
            hasher.update((dimension as u64).to_le_bytes());
        }
        hash_values(&mut hasher, &tensor)?;
    }
    progress(parameters.len(), parameters.len());
    Ok(Digest(hasher.finalize().into()))
}

/// Changes when what is computed does, so that no older build's entry is taken.
const DEFINITION: &str = "tombola fingerprint 1";

/// The file that remembers the fingerprint of these parameters of these files as they are now.
fn cache_entry(
    files: &[PathBuf],
    parameters: &BTreeMap<String, Vec<usize>>,
    cache: &CacheDir,
) -> Result<PathBuf, ModelError> {
    let mut key = format!("{DEFINITION}\n{parameters:?}\n");
    for file in files {
        let metadata = fs::metadata(file).map_err(ModelError::io(file))?;
        let path = fs::canonicalize(file).map_err(ModelError::io(file))?;
        let changed = metadata.modified().map_err(ModelError::io(file))?;
        let changed = changed
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        key += &format!("{} {} {changed}\n", path.display(), metadata.len());
    }
    let name = Digest::of(key.as_bytes()).to_string();
    Ok(cache.path().join("fingerprints").join(name))
}

fn store(entry: &Path, digest: Digest) -> std::io::Result<()> {
    let folder = entry.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let file = tempfile::NamedTempFile::new_in(folder)?;
    fs::write(file.path(), format!("{digest}\n"))?;
    file.persist(entry).map_err(|e| e.error)?;
    Ok(())
}
