//! Digests of resident values.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Result, Storage, Tensor};
use sha2::{Digest as _, Sha256};

use super::cpu::element::{Element, elements, with_element};

/// Adds a contiguous tensor's values to a digest, widened to f32, little-endian: equal for equal
/// values whatever dtype they are kept in.
pub fn hash_values(hasher: &mut Sha256, tensor: &Tensor) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let hash = |hasher: &mut Sha256, storage: &CpuStorage| {
        with_element!(storage, T => hash_elements(hasher, elements::<T>(storage, layout)?));
        Ok(())
    };
    match &*storage {
        Storage::Cpu(storage) => hash(hasher, storage),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            with_element!(storage, T => {
                let values = super::cuda::download::<T>(storage, layout)?;
                hash_elements(hasher, &values);
            });
            Ok(())
        }
        _ => candle_core::bail!("no digest on this device"),
    }
}

/// Adds values to a digest, widened to f32, little-endian.
pub fn hash_elements<T: Element>(hasher: &mut Sha256, values: &[T]) {
    let mut bytes = Vec::with_capacity(4 * 4096);
    for values in values.chunks(4096) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|v| v.widen().to_le_bytes()));
        hasher.update(&bytes);
    }
}
