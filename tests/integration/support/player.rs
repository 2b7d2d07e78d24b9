//! A decoder that a test drives step by step.

use std::sync::Arc;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use tombola::kernels::step::graphs::Graphs;
use tombola::model::{BLOCK, Base, Batch, KvCache, TicketLayout};

/// Sequences that a test runs through a decoder, step by step.
pub struct Player<'a> {
    base: &'a Base,
    cache: KvCache,
    /// Captured steps, as in the engine.
    graphs: Graphs,
    tables: Vec<Vec<u32>>,
    computed: Vec<usize>,
    overlaid: Option<Arc<TicketLayout>>,
}

impl<'a> Player<'a> {
    /// Room for `sequences` sequences of `positions` positions, in interleaved blocks.
    pub fn new(base: &'a Base, sequences: usize, positions: usize) -> Self {
        let blocks = positions.div_ceil(BLOCK);
        let table = |s: usize| (0..blocks).map(|b| (b * sequences + s) as u32).collect();
        Self {
            base,
            cache: base.kv_cache(blocks * sequences).expect("a cache"),
            graphs: Graphs::new(base.device()),
            tables: (0..sequences).map(table).collect(),
            computed: vec![0; sequences],
            overlaid: None,
        }
    }

    /// Overlays a ticket on every row.
    pub fn under(self, overlaid: Option<&Arc<TicketLayout>>) -> Self {
        Self {
            overlaid: overlaid.cloned(),
            ..self
        }
    }

    /// Appends a chunk of tokens to each of some sequences, as one step. Returns log-probabilities
    /// `[vocab]` after the last token of each chunk.
    pub fn step(&mut self, chunks: &[(usize, &[u32])]) -> Vec<Vec<f32>> {
        logprobs(&self.logits(chunks))
    }

    /// Like [`Player::step`], but returns raw logits `[chunks, vocab]`.
    pub fn logits(&mut self, chunks: &[(usize, &[u32])]) -> Tensor {
        let mut batch = Batch::default();
        for &(sequence, tokens) in chunks {
            let start = self.computed[sequence];
            batch.push(tokens, start, &self.tables[sequence], true);
            if let Some(ticket) = &self.overlaid {
                batch.overlay(ticket);
            }
            self.computed[sequence] += tokens.len();
        }
        let decoder = &self.base.decoder;
        let logits = decoder.forward_captured(&batch, &self.cache, &mut self.graphs);
        logits.expect("a step").expect("logits were requested")
    }

    /// The greedy continuation of sequence 0 after `prompt`, of `tokens` tokens.
    pub fn greedy(&mut self, prompt: &[u32], tokens: usize) -> Vec<u32> {
        let mut next = prompt.to_vec();
        let mut out = Vec::new();
        while out.len() < tokens {
            let row = self.step(&[(0, &next)]).remove(0);
            let best = (0..row.len())
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .unwrap();
            next = vec![best as u32];
            out.push(best as u32);
        }
        out
    }
}

/// Log-probabilities of each row of `logits`, `[rows, vocab]`.
pub fn logprobs(logits: &Tensor) -> Vec<Vec<f32>> {
    let on_cpu = logits.to_device(&Device::Cpu).unwrap();
    let wide = on_cpu.to_dtype(DType::F64).unwrap();
    let normalised = candle_nn::ops::log_softmax(&wide, D::Minus1).unwrap();
    let rows = normalised.to_dtype(DType::F32).unwrap();
    (0..rows.dim(0).unwrap())
        .map(|r| rows.i(r).unwrap().to_vec1().unwrap())
        .collect()
}
