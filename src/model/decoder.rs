//! The decoder of the Llama family, over a ragged batch of sequences.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::kv::{BLOCK, KvCache};
use super::overlay::{Overlaid, TicketOverlay};
use super::rope::RopeTable;
use super::weights::{Projection, Weights};
use crate::kernels::activation::silu_mul;
use crate::kernels::attention::{Span, attention};
use crate::kernels::kv;
use crate::kernels::overlay::{OverlayRows, overlay};
use crate::kernels::residual;
use crate::kernels::rms_norm::rms_norm;
use crate::kernels::rope::rotate;

/// The tokens of one step: rows of several sequences, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's key and value go: `block · BLOCK + offset`.
    pub slots: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub spans: Vec<Span>,
    /// The rows whose next token is wanted, ascending.
    pub logits_rows: Vec<u32>,
    /// The rows that are under a ticket besides what is applied, ascending.
    pub overlaid: Vec<Overlaid>,
}

impl Batch {
    /// Appends the next `tokens` of a sequence, the first of them at position `start`, with the
    /// sequence's block table; `wants_logits` asks for what follows the last of them.
    pub fn push(&mut self, tokens: &[u32], start: usize, blocks: &[u32], wants_logits: bool) {
        self.spans.push(Span {
            first_row: self.tokens.len(),
            rows: tokens.len(),
            first_position: start,
            blocks: blocks.to_vec(),
        });
        for (position, &token) in (start..).zip(tokens) {
            let slot = blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            self.tokens.push(token);
            self.positions.push(position as u32);
            self.slots.push(slot as u32);
        }
        if wants_logits {
            self.logits_rows.push(self.tokens.len() as u32 - 1);
        }
    }

    /// Lays a ticket over the rows of the sequence that was pushed last.
    pub fn overlay(&mut self, ticket: &Arc<TicketOverlay>) {
        let Some(span) = self.spans.last() else {
            return;
        };
        let rows = span.first_row..span.first_row + span.rows;
        match self.overlaid.last_mut() {
            Some(last) if last.rows.end == rows.start && Arc::ptr_eq(&last.ticket, ticket) => {
                last.rows.end = rows.end;
            }
            _ => self.overlaid.push(Overlaid {
                rows,
                ticket: Arc::clone(ticket),
            }),
        }
    }
}

/// The base's decoder: weights, and what is computed from the configuration once.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    weights: Weights,
    rope: RopeTable,
    scale: f32,
}

impl Decoder {
    /// A decoder for positions below `positions`.
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

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The angles of the positions that sequences may have.
    pub fn rope(&self) -> &RopeTable {
        &self.rope
    }

    /// What attention scores are multiplied by: `1 / √head_dim`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Runs one step: writes the batch's keys and values into `cache` and returns the logits of
    /// `logits_rows`, `[logits rows, vocab]` in f32; `None` where no row's are wanted.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Option<Tensor>> {
        let device = self.weights.embedding.device();
        let rope = self.rope.at(&batch.positions)?;
        let norm_dtype = self.weights.norm.dtype();
        // A copy of rows of the embedding, to add to.
        let x = self.weights.embedding.select(&batch.tokens)?;
        let x = x.to_dtype(norm_dtype)?;
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let h = self.norm(&x, &layer.input_norm)?;
            residual::add(&x, &self.attend(i, &h, batch, &rope, cache)?)?;
            let h = self.norm(&x, &layer.post_attention_norm)?;
            let h = silu_mul(&self.project(i, Projection::GateUp, &h, batch)?)?;
            residual::add(&x, &self.project(i, Projection::Down, &h, batch)?)?;
        }
        if batch.logits_rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(batch.logits_rows.as_slice(), device)?;
        let x = self.norm(&x.index_select(&rows, 0)?, &self.weights.norm)?;
        self.weights.head.forward(&x).map(Some)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.config.rms_norm_eps)
    }

    /// The attention block of one layer: `[rows, hidden]` → `[rows, hidden]`.
    fn attend(
        &self,
        index: usize,
        x: &Tensor,
        batch: &Batch,
        rope: &(Tensor, Tensor),
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
        let qkv = self.project(index, Projection::Qkv, x, batch)?;
        let qkv = qkv.reshape((rows, heads + 2 * kv_heads, dim))?;
        // Views: heads are turned, stored and read where the product has put them.
        let queries = qkv.narrow(1, 0, heads)?;
        let new_keys = qkv.narrow(1, heads, kv_heads)?;
        let new_values = qkv.narrow(1, heads + kv_heads, kv_heads)?;
        let eps = self.config.rms_norm_eps;
        for (part, norm) in [(&queries, &layer.q_norm), (&new_keys, &layer.k_norm)] {
            rotate(
                part,
                &rope.0,
                &rope.1,
                norm.as_ref().map(|norm| (norm, eps)),
            )?;
        }
        let (keys, values) = cache.layer(index);
        kv::write(keys, values, &new_keys, &new_values, &batch.slots)?;
        let window = self.config.windows[index];
        let y = attention(&queries, keys, values, &batch.spans, window, self.scale)?;
        let y = y.reshape((rows, heads * dim))?;
        self.project(index, Projection::O, &y, batch)
    }

    /// A layer's projection, each row with its ticket: `[rows, in]` → `[rows, out]`.
    fn project(
        &self,
        layer: usize,
        projection: Projection,
        x: &Tensor,
        batch: &Batch,
    ) -> Result<Tensor> {
        let y = self.weights.layers[layer].linear(projection).forward(x)?;
        let parts = batch.overlaid.iter().filter_map(|over| {
            Some(OverlayRows {
                rows: over.rows.clone(),
                layout: over.ticket.layout(layer, projection)?,
                scale: 1.0,
            })
        });
        let parts: Vec<OverlayRows> = parts.collect();
        if !parts.is_empty() {
            overlay(&y, x, &parts)?;
        }
        Ok(y)
    }
}
