//! Digests of resident values.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Storage, Tensor};
use sha2::{Digest as _, Sha256};

use super::cpu::element::{Element, elements, with_element};
use super::cuda;

/// Adds the values of a contiguous tensor to a digest, as little-endian f32: equal values give
/// equal digests in any dtype.
///
/// # Errors
/// The tensor is not contiguous, or its dtype has no kernel.
pub fn hash_values(hasher: &mut Sha256, tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cuda() {
        return hash_values(hasher, &cuda::download(tensor)?);
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("digest: {tensor:?} is on an unsupported device");
    };
    with_element!(storage, T => hash_elements(hasher, elements::<T>(storage, layout)?));
    Ok(())
}

/// Adds values to a digest, as little-endian f32.
pub fn hash_elements<T: Element>(hasher: &mut Sha256, values: &[T]) {
    let mut bytes = Vec::with_capacity(4 * 4096);
    for values in values.chunks(4096) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|v| v.widen().to_le_bytes()));
        hasher.update(&bytes);
    }
}
