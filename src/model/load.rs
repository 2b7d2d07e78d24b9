//! From a checkpoint to a resident base.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::checkpoint::Checkpoint;
use super::decoder::Decoder;
use super::device::{DeviceSpec, Dtype, Placement};
use super::error::ModelError;
use super::fetch::CacheDir;
use super::fingerprint::fingerprint;
use super::kv::KvCache;
use super::overlay::TicketOverlay;
use super::progress::{Progress, Stage};
use super::resident::Resident;
use super::source::Source;
use super::weights::{Loader, is_adaptable, parameters};
use crate::kernels::ticket::apply::takes_layouts;
use crate::ticket::{BaseManifest, BoundTicket, Digest, ParameterInfo, Ticket};

/// How a base is made resident.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub dtype: Dtype,
    pub device: DeviceSpec,
    /// Positions that sequences may have; `None` takes what the model was trained for.
    pub max_positions: Option<usize>,
    /// Leave the weights of a GGUF file quantised. Tickets can only be overlaid then.
    pub keep_quantized: bool,
}

/// A resident base.
pub struct Base {
    pub manifest: Arc<BaseManifest>,
    pub decoder: Decoder,
    pub resident: Resident,
    /// [`Resident::digest`] as loaded: what every later one is compared with.
    pub loaded_digest: Digest,
    /// Positions that sequences may have.
    pub max_positions: usize,
    place: Placement,
}

impl Base {
    /// Loads the base `name` from its checkpoint; fingerprints it first.
    pub fn load(
        name: &str,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let trained = checkpoint.config().max_position_embeddings;
        let max_positions = options.max_positions.unwrap_or(trained);
        if max_positions > trained {
            let asked = max_positions;
            return Err(ModelError::ContextLength { asked, trained });
        }
        if options.keep_quantized {
            let shapes = parameters(checkpoint.config());
            let matrices = shapes.iter().filter(|(_, shape)| shape.len() == 2);
            checkpoint.check_keep_quantized(matrices.map(|(name, _)| name))?;
        }
        let device = match options.keep_quantized {
            true => options.device.or_cpu(),
            false => options.device,
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
        let resident = Resident::new(views, &weights, Arc::clone(&manifest));
        Ok(Self {
            manifest,
            decoder: Decoder::new(config, weights, max_positions)?,
            loaded_digest: resident.digest()?,
            resident,
            max_positions,
            place,
        })
    }

    /// Takes the base apart to train it: the decoder, and its parameters by checkpoint name, which
    /// share the decoder's storage. An applied ticket stays in the weights.
    ///
    /// # Errors
    /// If the base is kept quantised.
    pub fn into_trainable(self) -> Result<(Decoder, BTreeMap<String, Tensor>), ModelError> {
        Ok((self.decoder, self.resident.into_parameters()?))
    }

    /// Where the base is.
    pub fn device(&self) -> &Device {
        &self.place.device
    }

    /// Arranges a ticket of this base to be laid over rows; see [`TicketOverlay::new`].
    pub fn lay_out(&self, ticket: &BoundTicket) -> Result<TicketOverlay, ModelError> {
        TicketOverlay::new(ticket, &self.manifest, self.device())
    }

    /// Says what a ticket takes of the memory, in bytes at most: more where it is arranged for the device, to be
    /// `overlaid`, or to be applied on a GPU.
    pub fn memory_of_tickets(
        &self,
        overlaid: bool,
    ) -> impl Fn(&Ticket, &BaseManifest) -> usize + Send + Sync + 'static {
        let device = self.device().clone();
        let arranged = overlaid || takes_layouts(&device);
        move |ticket, base| match arranged {
            true => TicketOverlay::resident_bytes_of(ticket, base, &device),
            false => ticket.resident_bytes(),
        }
    }

    /// Room for `blocks` blocks of keys and values of this base.
    pub fn kv_cache(&self, blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.decoder.config(), blocks, &self.place)
    }

    /// What the device is called.
    pub fn device_name(&self) -> String {
        self.place.name()
    }

    /// Bytes that tickets may take of `asked`, beside `kv_cache` bytes of keys and values and what steps need for
    /// themselves: fewer where the device has less.
    pub fn room_for_tickets(&self, asked: usize, kv_cache: usize) -> usize {
        /// What is left to steps: activations, expanded deltas, parts of attention; and once more for those that are
        /// captured, whose memory is apart.
        const STEPS: usize = 3 << 29;
        match self.place.free_memory() {
            Some(free) => asked.min(free.saturating_sub(kv_cache + STEPS)),
            None => asked,
        }
    }

    /// Bytes of one weight of a projection.
    pub fn weight_bytes(&self) -> usize {
        self.place.weights.size_in_bytes()
    }

    /// Bytes of the weights that a step reads: all but an embedding that is not the head too, of which it reads rows.
    pub fn step_bytes(&self) -> usize {
        let embedding = match self.decoder.config().tie_word_embeddings {
            true => 0,
            false => self.decoder.weights().embedding.bytes(),
        };
        self.resident.bytes() - embedding
    }

    /// Bytes that one block of keys and values takes.
    pub fn block_bytes(&self) -> usize {
        let values = super::BLOCK * self.decoder.config().kv_values_per_token();
        values * self.place.cache.size_in_bytes()
    }
}

/// The manifest of the base that `--model` names, without making it resident.
pub fn manifest(
    model: &str,
    cache: &CacheDir,
    progress: &mut dyn FnMut(Progress),
) -> Result<BaseManifest, ModelError> {
    let source = Source::parse(model)?;
    let files = source.resolve(cache, progress)?;
    describe(&source.name(), &Checkpoint::open(&files)?, cache, progress)
}

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

fn report(stage: Stage, progress: &mut dyn FnMut(Progress)) -> impl FnMut(usize, usize) {
    move |done, total| {
        progress(Progress {
            stage,
            done: done as u64,
            total: total as u64,
        });
    }
}
