//! The fingerprint of a base: a digest over its parameters, equal for a GGUF file and for the
//! folder that it was dequantised to.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
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
/// The digest is cached under the files' paths, sizes, times, inodes and a sample of their
/// contents, and the parameters that the configuration expects. `progress` receives the parameters
/// done and their total number.
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
const DEFINITION: &str = "tombola fingerprint 1, files by sample";

/// Bytes of one block of a file's sample.
const SAMPLE_BLOCK: usize = 4 << 10;
/// Blocks of a file's sample, spread evenly from its head to its tail.
const SAMPLE_BLOCKS: u64 = 66;

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
        let bytes = metadata.len();
        let sample = sample(file, bytes).map_err(ModelError::io(file))?;
        let inode = inode(&metadata);
        let path = path.display();
        key += &format!("{path} {bytes} {nanoseconds} {inode} {sample}\n");
    }
    let name = Digest::of(key.as_bytes()).to_string();
    Ok(cache.path().join("fingerprints").join(name))
}

/// Device, inode and time of the last change of a file's contents or attributes, which, unlike its
/// modification time, a program cannot set.
#[cfg(unix)]
fn inode(metadata: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    format!("{device} {inode} {seconds}.{nanoseconds:09}")
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> String {
    String::new()
}

/// Digest of blocks spread over a file of `bytes` bytes, its head and its tail among them.
fn sample(file: &Path, bytes: u64) -> io::Result<Digest> {
    let mut file = File::open(file)?;
    let mut hasher = Sha256::new();
    let mut block = Vec::with_capacity(SAMPLE_BLOCK);
    let last = bytes.saturating_sub(SAMPLE_BLOCK as u64);
    for i in 0..SAMPLE_BLOCKS {
        // In 128 bits, because the product may exceed 64.
        let start = u128::from(last) * u128::from(i) / u128::from(SAMPLE_BLOCKS - 1);
        file.seek(SeekFrom::Start(start as u64))?;
        block.clear();
        file.by_ref()
            .take(SAMPLE_BLOCK as u64)
            .read_to_end(&mut block)?;
        hasher.update(&block);
    }
    Ok(Digest(hasher.finalize().into()))
}

fn store(entry: &Path, digest: Digest) -> io::Result<()> {
    let folder = entry.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let file = tempfile::NamedTempFile::new_in(folder)?;
    fs::write(file.path(), format!("{digest}\n"))?;
    file.persist(entry).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(file: &Path) -> PathBuf {
        let cache = CacheDir::at("cache".into());
        cache_entry(&[file.to_owned()], &BTreeMap::new(), &cache).unwrap()
    }

    #[test]
    fn weights_changed_with_the_same_size_and_time_have_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let time = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let write = |path: &Path, byte: u8| {
            fs::write(path, vec![byte; 1 << 20]).unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(time).unwrap();
        };
        write(&path, 1);
        let before = entry(&path);
        assert_eq!(entry(&path), before);
        // In place.
        write(&path, 2);
        let changed = entry(&path);
        assert_ne!(changed, before);
        // Another file of the same content under the same name.
        let other = folder.path().join("other");
        write(&other, 2);
        fs::rename(&other, &path).unwrap();
        assert_ne!(entry(&path), changed);
    }

    #[test]
    fn the_sample_covers_the_head_the_tail_and_blocks_between() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let digest = |bytes: &[u8]| {
            fs::write(file.path(), bytes).unwrap();
            sample(file.path(), bytes.len() as u64).unwrap()
        };
        let mut bytes = vec![0; 10 << 20];
        let plain = digest(&bytes);
        let middle = bytes.len() / 2 - SAMPLE_BLOCK..bytes.len() / 2 + (1 << 18);
        for place in [0..1, bytes.len() - 1..bytes.len(), middle] {
            bytes[place.clone()].fill(1);
            assert_ne!(digest(&bytes), plain, "{place:?}");
            bytes[place].fill(0);
        }
        assert_eq!(digest(&bytes), plain);
        // Shorter than a block.
        assert_ne!(digest(&[]), digest(&[0]));
    }
}
