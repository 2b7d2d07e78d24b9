//! The resident keys and values, in blocks.

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::device::Placement;
pub use crate::kernels::kv::BLOCK;

/// Keys and values of all layers, in `blocks` blocks of [`BLOCK`] positions; which sequence owns
/// which block is the scheduler's business. Pages of memory are taken when first written.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    blocks: usize,
}

impl KvCache {
    pub(super) fn new(config: &ModelConfig, blocks: usize, place: &Placement) -> Result<Self> {
        let (heads, dim) = (config.kv_heads, config.head_dim);
        let layer = |_| {
            let keys = Tensor::zeros((blocks, heads, dim, BLOCK), place.cache, &place.device)?;
            let values = Tensor::zeros((blocks, heads, BLOCK, dim), place.cache, &place.device)?;
            Ok((keys, values))
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            blocks,
        })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The keys and values of one layer.
    pub(super) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[layer];
        (keys, values)
    }
}
