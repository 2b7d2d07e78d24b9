//! The fingerprint of a base: a digest over its parameters, equal for a GGUF file and for the
//! folder that it was dequantised to.

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

/// SHA-256 digest over the parameters in byte order of their checkpoint names. Each parameter adds
/// the length of its name as u64, the name, its rank as u64, its dimensions as u64, and its values
/// as f32. All are little-endian, query and key rows are in the order of the checkpoint, and a tied
/// head is left out.
///
/// The digest is cached under the files' paths, sizes and modification times and the parameters
/// that the configuration expects. `progress` receives the parameters done and their total number.
///
/// # Errors
/// A parameter cannot be read.
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
    // Not an error: without the cache entry, the next start takes longer.
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

/// Version of the definition. Changing it invalidates the cache entries of older builds.
const DEFINITION: &str = "tombola fingerprint 1";

/// Path of the cache entry for these parameters of these files in their present state.
fn cache_entry(
    files: &[PathBuf],
    parameters: &BTreeMap<String, Vec<usize>>,
    cache: &CacheDir,
) -> Result<PathBuf, ModelError> {
    let mut key = format!("{DEFINITION}\n{parameters:?}\n");
    for file in files {
        let metadata = fs::metadata(file).map_err(ModelError::io(file))?;
        let path = fs::canonicalize(file).map_err(ModelError::io(file))?;
        let modified = metadata.modified().map_err(ModelError::io(file))?;
        let nanoseconds = modified
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        key += &format!("{} {} {nanoseconds}\n", path.display(), metadata.len());
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
