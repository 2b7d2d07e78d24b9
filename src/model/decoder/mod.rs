//! Decoder of the Llama family, over a ragged batch of sequences.

mod batch;

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::kv::{BLOCK, KvCache};
use super::layout::weight_number;
use super::rope::RopeTable;
use super::weights::{Projection, Weights};
use crate::kernels::activation::silu_mul;
use crate::kernels::attention::{Spans, attention};
use crate::kernels::gather_rows::gather_rows;
use crate::kernels::residual;
use crate::kernels::rms_norm::rms_norm;
use crate::kernels::rope::{HeadNorms, rotate};
use crate::kernels::step::graphs::{GraphKey, Graphs};
use crate::kernels::step::indices::Indices;
use crate::kernels::step::inputs::Inputs;
use crate::kernels::ticket::overlay::{OverlayRows, Overlays, overlay};
pub use batch::{Batch, OverlaidRows};

/// Indices of a batch, uploaded to the device together.
struct Step<'a> {
    tokens: Indices<'a>,
    positions: Indices<'a>,
    slots: Indices<'a>,
    logits_rows: Indices<'a>,
    hidden_rows: Indices<'a>,
    spans: Spans<'a>,
    overlays: Overlays<'a>,
}

/// What a step computes of its rows.
#[derive(Debug)]
pub struct StepRows {
    /// Logits of `logits_rows`, `[logits rows, vocab]` in f32; `None` if there are none.
    pub logits: Option<Tensor>,
    /// Hidden states of `hidden_rows` after the final norm, `[hidden rows, hidden]` in the dtype of
    /// the activations; `None` if there are none.
    pub hidden: Option<Tensor>,
}

/// The base's decoder: its weights, and tables computed once from its configuration.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    weights: Weights,
    rope: RopeTable,
    scale: f32,
}

impl Decoder {
    /// Builds a decoder for positions below `positions`.
    pub(super) fn new(config: ModelConfig, weights: Weights, positions: usize) -> Result<Self> {
        let rope = RopeTable::new(&config, positions, weights.embedding.device())?;
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        Ok(Self {
            config,
            weights,
            rope,
            scale,
        })
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The fused weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Rotary angles of all positions.
    pub fn rope(&self) -> &RopeTable {
        &self.rope
    }

    /// Factor of the attention scores: `1 / √head_dim`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Runs one step: writes the batch's keys and values into `cache` and returns the logits of
    /// `logits_rows`, `[logits rows, vocab]` in f32; `None` if `logits_rows` is empty.
    ///
    /// # Errors
    /// An index of the batch is out of range, or the device has no memory for the step.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Option<Tensor>> {
        let mut graphs = Graphs::eager(self.weights.embedding.device());
        self.forward_captured(batch, cache, &mut graphs)
    }

    /// As [`Self::forward`], but captures the launches of decoding steps as CUDA graphs and replays
    /// them.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_captured(
        &self,
        batch: &Batch,
        cache: &KvCache,
        graphs: &mut Graphs,
    ) -> Result<Option<Tensor>> {
        Ok(self.run(batch, cache, graphs)?.logits)
    }

    /// As [`Self::forward_captured`], with the hidden states of `hidden_rows` as well.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn run(&self, batch: &Batch, cache: &KvCache, graphs: &mut Graphs) -> Result<StepRows> {
        let step = self.prepare(batch, graphs.begin())?;
        graphs.upload()?;
        let tensors = vec![self.weights.norm.id(), cache.layer(0).keys().id()];
        let key = GraphKey::new(tensors, &step.spans, &step.overlays);
        if key.is_some() {
            self.check(batch, &step, cache)?;
        }
        let x = graphs.run(key, || self.layers(&step, cache))?;
        let logits = self.normed(&x, &step.logits_rows)?;
        let logits = logits.map(|x| self.weights.head.forward_f32(&x));
        Ok(StepRows {
            logits: logits.transpose()?,
            hidden: self.normed(&x, &step.hidden_rows)?,
        })
    }

    /// Rows of the residual stream after the final norm; `None` if there are none.
    fn normed(&self, x: &Tensor, rows: &Indices) -> Result<Option<Tensor>> {
        if rows.host().is_empty() {
            return Ok(None);
        }
        let x = gather_rows(x, rows)?;
        rms_norm(&x, &self.weights.norm, self.config.rms_norm_eps).map(Some)
    }

    /// Places a batch's indices among `inputs`, to be uploaded with them.
    fn prepare<'a>(&self, batch: &'a Batch, inputs: &mut Inputs) -> Result<Step<'a>> {
        let group = self.config.heads / self.config.kv_heads;
        let overlaid = batch.overlaid.iter().map(|over| OverlayRows {
            rows: over.rows.clone(),
            ticket: over.ticket.layouts(),
            scale: 1.0,
        });
        Ok(Step {
            tokens: Indices::new(&batch.tokens, inputs),
            positions: Indices::new(&batch.positions, inputs),
            slots: Indices::new(&batch.slots, inputs),
            overlays: Overlays::new(overlaid.collect(), batch.tokens.len(), inputs)?,
            // Their offsets in the upload vary among the steps of one graph, so no captured launch
            // reads these.
            spans: Spans::new(&batch.spans, group, inputs)?,
            logits_rows: Indices::new(&batch.logits_rows, inputs),
            hidden_rows: Indices::new(&batch.hidden_rows, inputs),
        })
    }

    /// Checks the batch as its operations do when they run: a replayed graph runs none of their
    /// checks.
    fn check(&self, batch: &Batch, step: &Step, cache: &KvCache) -> Result<()> {
        let rows = batch.tokens.len();
        step.tokens.check("token", rows, self.config.vocab_size)?;
        let positions = self.rope.positions();
        step.positions.check("position", rows, positions)?;
        step.slots.check("slot", rows, cache.blocks() * BLOCK)?;
        step.spans.check(rows, cache.blocks())?;
        if batch.overlaid.is_empty() {
            return Ok(());
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            for projection in Projection::ALL {
                let (out, inner) = layer.linear(projection).weight()?.dims2()?;
                let weight = weight_number(index, projection);
                step.overlays.check_fit(weight, [out, inner], rows)?;
            }
        }
        Ok(())
    }

    /// Runs all layers: the residual stream `[rows, hidden]` in f32, before the final norm.
    fn layers(&self, step: &Step, cache: &KvCache) -> Result<Tensor> {
        let eps = self.config.rms_norm_eps;
        let rope = self.rope.at(&step.positions)?;
        // A copy of the embedding's rows: the layers add to it in place.
        let x = self.weights.embedding.gather_rows(&step.tokens)?;
        let mut mlp: Option<Tensor> = None;
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let norm = &layer.input_norm;
            let h = match &mlp {
                None => rms_norm(&x, norm, eps)?,
                Some(y) => residual::add_norm(&x, y, norm, eps)?,
            };
            let y = self.attend(i, &h, &rope, step, cache)?;
            let h = residual::add_norm(&x, &y, &layer.post_attention_norm, eps)?;
            let h = silu_mul(&self.project(i, Projection::GateUp, &h, step)?)?;
            mlp = Some(self.project(i, Projection::Down, &h, step)?);
        }
        if let Some(y) = mlp {
            residual::add(&x, &y)?;
        }
        Ok(x)
    }

    /// The attention block of one layer: `[rows, hidden]` → `[rows, hidden]`.
    fn attend(
        &self,
        index: usize,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        step: &Step,
        cache: &KvCache,
    ) -> Result<Tensor> {
        let ModelConfig {
            heads,
            kv_heads,
            head_dim: dim,
            ..
        } = self.config;
        let layer = &self.weights.layers[index];
        let rows = x.dim(0)?;
        let qkv = self.project(index, Projection::Qkv, x, step)?;
        let qkv = qkv.reshape((rows, heads + 2 * kv_heads, dim))?;
        let norms = layer.q_norm.as_ref().zip(layer.k_norm.as_ref());
        let norms = norms.map(|(queries, keys)| HeadNorms {
            queries,
            query_heads: heads,
            keys,
            eps: self.config.rms_norm_eps,
        });
        // Views: heads are rotated, stored and read in the product's own memory.
        let rotated = qkv.narrow(1, 0, heads + kv_heads)?;
        rotate(&rotated, cos, sin, norms)?;
        let cached = cache.layer(index);
        cached.write(&qkv.narrow(1, heads, 2 * kv_heads)?, &step.slots)?;
        let queries = qkv.narrow(1, 0, heads)?;
        let window = self.config.windows[index];
        let y = attention(&queries, cached, &step.spans, window, self.scale)?;
        let y = y.reshape((rows, heads * dim))?;
        self.project(index, Projection::O, &y, step)
    }

    /// One projection of a layer, with each row's ticket overlaid: `[rows, in]` → `[rows, out]`.
    fn project(
        &self,
        layer: usize,
        projection: Projection,
        x: &Tensor,
        step: &Step,
    ) -> Result<Tensor> {
        let linear = self.weights.layers[layer].linear(projection);
        let weight = weight_number(layer, projection);
        if !step.overlays.touches(weight) {
            return linear.forward(x);
        }
        overlay(linear.forward_f32(x)?, x, &step.overlays, weight)
    }
}

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
