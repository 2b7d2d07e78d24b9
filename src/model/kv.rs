//! The KV cache, in blocks.

use super::config::ModelConfig;
use super::device::Placement;
use super::error::ModelError;
pub use crate::kernels::kv::BLOCK;
use crate::kernels::kv::KvBlocks;

/// Keys and values of all layers, in blocks of [`BLOCK`] positions. The scheduler decides which
/// sequence owns which block. Memory pages are taken when first written.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvBlocks>,
}

impl KvCache {
    /// Allocates `blocks` blocks.
    ///
    /// # Errors
    /// The device has no room for them.
    pub(super) fn new(
        config: &ModelConfig,
        blocks: usize,
        place: &Placement,
    ) -> Result<Self, ModelError> {
        let (heads, dim) = (config.kv_heads, config.head_dim);
        let bytes = blocks * BLOCK * config.kv_values_per_token() * place.cache.size_in_bytes();
        place.check_room(bytes)?;
        let layer = |_| KvBlocks::zeros([blocks, heads, dim], place.cache, &place.device);
        Ok(Self {
            layers: (0..config.layers)
                .map(layer)
                .collect::<candle_core::Result<_>>()
                .map_err(|_| ModelError::NoMemory { bytes })?,
        })
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.layers[0].keys().dims()[0]
    }

    /// Keys and values of one layer.
    pub(super) fn layer(&self, layer: usize) -> &KvBlocks {
        &self.layers[layer]
    }
}
