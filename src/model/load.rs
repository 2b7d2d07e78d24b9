//! Loading a checkpoint as the resident base.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::decoder::Decoder;
use super::device::{DeviceSpec, Dtype, Placement};
use super::error::ModelError;
use super::fetch::CacheDir;
use super::fingerprint::fingerprint;
use super::kv::KvCache;
use super::layout::TicketLayout;
use super::progress::{Progress, Stage};
use super::resident::Resident;
use super::rope::RopeTable;
use super::source::Source;
use super::ticket_memory::TicketMemory;
use super::weights::{Loader, is_adaptable, parameters};
use crate::kernels::ticket::apply::applies_by_layout;
use crate::ticket::{BaseManifest, BoundTicket, Digest, ParameterInfo};

/// How a base is made resident.
///
/// ```
/// use tombola::model::{DeviceSpec, Dtype, LoadOptions};
///
/// let options = LoadOptions {
///     dtype: "bf16".parse()?,
///     device: "cpu".parse()?,
///     max_positions: Some(2048),
///     keep_quantized: false,
/// };
/// assert_eq!(options.dtype, Dtype::Bf16);
/// assert_eq!(options.device, DeviceSpec::Cpu);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Dtype of the resident weights.
    pub dtype: Dtype,
    /// Device of the weights, the KV cache and the ticket layouts.
    pub device: DeviceSpec,
    /// Maximum positions of a sequence; `None` is the model's trained context length.
    pub max_positions: Option<usize>,
    /// Keep the weights of a GGUF file quantised. Tickets can then be overlaid, not applied.
    pub keep_quantized: bool,
}

/// The resident base.
pub struct Base {
    /// Name, fingerprint and parameters of the base.
    pub manifest: Arc<BaseManifest>,
    /// The forward pass.
    pub decoder: Decoder,
    /// The parameters, to apply tickets to; they share the decoder's storage.
    pub resident: Resident,
    /// [`Resident::digest`] right after loading: the reference of every later digest.
    pub loaded_digest: Digest,
    /// Maximum positions of a sequence.
    pub max_positions: usize,
    place: Placement,
}

impl Base {
    /// Fingerprints a checkpoint and loads it as the base `name`.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or does not support the options; the device has no room for
    /// its weights.
    pub fn load(
        name: &str,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let max_positions = positions(checkpoint.config(), options.max_positions)?;
        if options.keep_quantized {
            let shapes = parameters(checkpoint.config());
            let matrices = shapes.iter().filter(|(_, shape)| shape.len() == 2);
            checkpoint.check_keep_quantized(matrices.map(|(name, _)| name))?;
        }
        let device = if options.keep_quantized {
            options.device.or_cpu()
        } else {
            options.device
        };
        let place = Placement::new(device, options.dtype)?;
        if options.keep_quantized {
            place.check_keep_quantized()?;
        }
        place.check_heads(checkpoint.config())?;
        let manifest = Arc::new(describe(name, checkpoint, cache, progress)?);
        let config = checkpoint.config().clone();
        let mut count = report(Stage::Load, progress);
        let (weights, views) =
            Loader::new(checkpoint, &place, options.keep_quantized, &mut count).load()?;
        let resident = Resident::new(views, &weights, Arc::clone(&manifest))?;
        Ok(Self {
            manifest,
            decoder: Decoder::new(config, weights, max_positions)?,
            loaded_digest: resident.digest()?,
            resident,
            max_positions,
            place,
        })
    }

    /// Splits the base for training into the decoder and its parameters by checkpoint name, which
    /// share the decoder's storage. An applied ticket stays in the weights.
    ///
    /// # Errors
    /// The base is kept quantised.
    pub fn into_trainable(self) -> Result<(Decoder, BTreeMap<String, Tensor>), ModelError> {
        Ok((self.decoder, self.resident.into_parameters()?))
    }

    /// Device that the base is on.
    pub fn device(&self) -> &Device {
        &self.place.device
    }

    /// Builds a ticket's layout on this base's device, on all cores.
    ///
    /// # Errors
    /// The ticket is bound to another base, or the device has no room for its layout.
    pub fn lay_out(&self, ticket: &BoundTicket) -> Result<TicketLayout, ModelError> {
        TicketLayout::new(ticket, &self.manifest, self.device())
    }

    /// Memory that a loaded ticket of this base takes. Its layout counts if tickets are `overlaid`,
    /// or if the device applies them by their layouts.
    pub fn ticket_memory(&self, overlaid: bool) -> TicketMemory {
        if overlaid || applies_by_layout(self.device()) {
            TicketMemory::with_layouts_on(self.device().clone())
        } else {
            TicketMemory::without_layouts()
        }
    }

    /// Allocates a KV cache of `blocks` blocks.
    ///
    /// # Errors
    /// The device has no room for it.
    pub fn kv_cache(&self, blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.decoder.config(), blocks, &self.place)
    }

    /// Name of the device, for reports.
    pub fn device_name(&self) -> String {
        self.place.name()
    }

    /// Memory budget of tickets in bytes: `requested`, or less if the device lacks room for it
    /// besides `kv_cache` bytes of keys and values and the buffers of the steps.
    pub fn room_for_tickets(&self, requested: usize, kv_cache: usize) -> usize {
        /// Bytes kept free for the steps: activations, expanded deltas and partial attention, once
        /// for eager steps and once more for captured ones, which use separate memory.
        const STEPS: usize = 3 << 29;
        match self.place.free_memory() {
            Some(free) => requested.min(free.saturating_sub(kv_cache + STEPS)),
            None => requested,
        }
    }

    /// Bytes of one element of a projection's weight.
    pub fn weight_bytes(&self) -> usize {
        self.place.weights.size_in_bytes()
    }

    /// Bytes of the weights that each step reads completely: all except an untied embedding, of
    /// which it reads single rows.
    pub fn step_bytes(&self) -> usize {
        let embedding = if self.decoder.config().tie_word_embeddings {
            0
        } else {
            self.decoder.weights().embedding.bytes()
        };
        self.resident.bytes() - embedding
    }

    /// Bytes of one KV block, over all layers.
    pub fn block_bytes(&self) -> usize {
        let values = super::BLOCK * self.decoder.config().kv_values_per_token();
        values * self.place.cache.size_in_bytes()
    }
}

/// Bytes of the rotation tables that a base has by default, at most: 524,288 positions of heads of
/// 128 values.
const MAX_TABLE_BYTES: usize = 256 << 20;

/// Maximum positions of a sequence: the requested ones, or those that the model was trained for, of
/// which the configuration may claim any number.
fn positions(config: &ModelConfig, requested: Option<usize>) -> Result<usize, ModelError> {
    let trained = config.max_position_embeddings;
    if let Some(requested) = requested.filter(|&requested| requested > trained) {
        return Err(ModelError::ContextLength { requested, trained });
    }
    let by_default = MAX_TABLE_BYTES / RopeTable::bytes_per_position(config);
    let positions = requested.unwrap_or_else(|| trained.min(by_default).max(1));
    if requested.is_none() && positions < trained {
        tracing::warn!(
            "the model claims a context of {trained} tokens; sequences are limited to {positions}, \
             unless --max-model-len asks for more"
        );
    }
    let bytes = positions.checked_mul(RopeTable::bytes_per_position(config));
    // Rules out sizes that no machine has; a reservation costs no memory until it is used.
    // The angles, then their cosines and sines.
    let peak = bytes.and_then(|bytes| bytes.checked_mul(2));
    let room = peak.filter(|&peak| Vec::<u8>::new().try_reserve_exact(peak).is_ok());
    match room {
        Some(_) => Ok(positions),
        None => Err(ModelError::RotationTables {
            requested: positions,
            bytes: bytes.unwrap_or(usize::MAX),
        }),
    }
}

/// Manifest of the base that `model` names (a folder, a GGUF file or a hub repository), without
/// loading its weights.
///
/// # Errors
/// The model cannot be found, fetched or read.
pub fn manifest(
    model: &str,
    cache: &CacheDir,
    progress: &mut dyn FnMut(Progress),
) -> Result<BaseManifest, ModelError> {
    let source = Source::parse(model)?;
    let files = source.resolve(cache, progress)?;
    describe(&source.name(), &Checkpoint::open(&files)?, cache, progress)
}

/// Manifest of a checkpoint, fingerprinted.
fn describe(
    name: &str,
    checkpoint: &Checkpoint,
    cache: &CacheDir,
    progress: &mut dyn FnMut(Progress),
) -> Result<BaseManifest, ModelError> {
    let mut count = report(Stage::Fingerprint, progress);
    let fingerprint = fingerprint(checkpoint, cache, &mut count)?;
    let info = |(name, shape): (String, Vec<usize>)| {
        let adaptable = is_adaptable(&name);
        (name, ParameterInfo { shape, adaptable })
    };
    Ok(BaseManifest {
        name: name.to_owned(),
        fingerprint,
        parameters: parameters(checkpoint.config())
            .into_iter()
            .map(info)
            .collect(),
    })
}

/// Callback that reports `(done, total)` bytes of a stage.
fn report(stage: Stage, progress: &mut dyn FnMut(Progress)) -> impl FnMut(usize, usize) {
    move |done, total| {
        progress(Progress {
            stage,
            done: done as u64,
            total: total as u64,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(trained: usize) -> ModelConfig {
        let json = format!(
            r#"{{"model_type": "llama", "hidden_size": 512, "intermediate_size": 8,
                "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
                "rms_norm_eps": 1e-5, "max_position_embeddings": {trained}}}"#
        );
        ModelConfig::from_json(&json).unwrap()
    }

    #[test]
    fn a_claimed_context_is_bounded_and_a_requested_one_must_fit_the_memory() {
        assert_eq!(positions(&config(4096), None).unwrap(), 4096);
        assert_eq!(positions(&config(4096), Some(64)).unwrap(), 64);
        // Heads of 128 values take 512 bytes per position.
        for trained in [1 << 20, 1 << 40, usize::MAX] {
            assert_eq!(positions(&config(trained), None).unwrap(), 524_288);
        }
        assert_eq!(
            positions(&config(usize::MAX), Some(1 << 20)).unwrap(),
            1 << 20
        );
        for requested in [1 << 54, 1 << 55, usize::MAX] {
            let error = positions(&config(usize::MAX), Some(requested)).unwrap_err();
            assert!(
                matches!(error, ModelError::RotationTables { .. }),
                "{error}"
            );
        }
        let error = positions(&config(64), Some(65)).unwrap_err();
        assert!(matches!(error, ModelError::ContextLength { .. }), "{error}");
    }
}
