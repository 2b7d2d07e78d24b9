//! Loss of the decoder and its gradients.
//!
//! The forward pass is that of the serving decoder, over the same weights, without a KV cache; a
//! test keeps the two equal. The backward pass is written out layer by layer instead of recorded on
//! a tape. This allows a layer to choose what it saves and to recompute the rest, and a linear
//! layer to pass the *factors* of its weight gradient to a [`Gradients`], which computes only the
//! entries of their product that it trains.

mod layer;
mod rows;
mod slot;

use candle_core::{Result, Tensor};
use candle_nn::ops::rms_norm;

use crate::kernels::gather_rows::gather_rows;
use crate::kernels::rms_norm::{rms_norm_backward, rms_norm_weight_gradient};
use crate::kernels::step::indices::Indices;
use crate::kernels::training::accumulate;
use crate::kernels::training::attention::CausalOptions;
use crate::kernels::training::cross_entropy::{cross_entropy, nll};
use crate::model::Decoder;
pub use rows::Rows;
pub use slot::Slot;

/// Receiver of gradients.
pub trait Gradients {
    /// Whether gradients of tensors other than projection weights are needed.
    fn everything(&self) -> bool;

    /// Adds `dyᵀ·x`, the gradient of a weight `[out, in]`, for `x` `[rows, in]` and `dy`
    /// `[rows, out]`.
    fn product(&mut self, slot: Slot, x: &Tensor, dy: &Tensor) -> Result<()>;

    /// Adds the gradient of a whole tensor.
    fn add(&mut self, slot: Slot, gradient: &Tensor) -> Result<()>;

    /// Adds the gradient of some rows of a tensor, `[rows, …]`; row indices may repeat.
    fn add_rows(&mut self, slot: Slot, rows: &[u32], gradient: &Tensor) -> Result<()>;
}

/// Maximum number of logits in memory: a chunk of rows times the vocabulary, 4 bytes each.
const MAX_LOGITS: usize = 16 << 20;

/// Computes losses and gradients of a decoder.
#[derive(Clone, Copy)]
pub struct Backprop<'a> {
    /// The decoder, with weights in f32.
    pub decoder: &'a Decoder,
    /// Keep only the input of each layer and recompute the rest in the backward pass.
    pub checkpointing: bool,
}

/// Data shared by all layers of a pass.
struct Pass<'a> {
    cos: Tensor,
    sin: Tensor,
    rows: &'a Rows,
    scale: f32,
    eps: f32,
}

impl Pass<'_> {
    fn options(&self, window: Option<usize>) -> CausalOptions<'_> {
        CausalOptions {
            sequences: &self.rows.sequences,
            window,
            scale: self.scale,
        }
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.eps)
    }

    fn norm_backward(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
        rms_norm_backward(x, weight, dy, self.eps)
    }

    /// Adds the gradient of the weight of a norm, if it is trained.
    fn norm_gradient(
        &self,
        slot: Slot,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut dyn Gradients,
    ) -> Result<()> {
        if !gradients.everything() {
            return Ok(());
        }
        gradients.add(slot, &rms_norm_weight_gradient(x, dy, self.eps)?)
    }
}

impl Backprop<'_> {
    /// The loss of each learned token: the negative log of its probability, in nats.
    pub fn losses(&self, rows: &Rows) -> Result<Vec<f32>> {
        let pass = self.pass(rows)?;
        let x = self.hidden(rows, &pass)?;
        let mut losses = Vec::with_capacity(rows.targets.len());
        for (hidden, targets) in self.chunks(&x, rows)? {
            let logits = self.logits(&pass.norm(&hidden, &self.decoder.weights().norm)?)?;
            losses.extend(nll(&logits, targets)?);
        }
        Ok(losses)
    }

    /// The logits of every row, `[rows, vocab]`.
    pub fn all_logits(&self, rows: &Rows) -> Result<Tensor> {
        let pass = self.pass(rows)?;
        let x = self.hidden(rows, &pass)?;
        self.logits(&pass.norm(&x, &self.decoder.weights().norm)?)
    }

    /// Computes the loss of each learned token, and adds the gradient of `weight` times their sum
    /// to `gradients`.
    pub fn gradients(
        &self,
        rows: &Rows,
        weight: f32,
        gradients: &mut dyn Gradients,
    ) -> Result<Vec<f32>> {
        let pass = self.pass(rows)?;
        let layers = self.decoder.weights().layers.len();
        let mut x = self.embed(rows)?;
        let mut kept = Vec::with_capacity(layers);
        for index in 0..layers {
            let (y, saved) = self.layer(index, &pass).forward(&x)?;
            kept.push((x, (!self.checkpointing).then_some(saved)));
            x = y;
        }
        let (losses, mut dx) = self.head_gradients(&pass, &x, weight, gradients)?;
        drop(x);
        for index in (0..layers).rev() {
            let layer = self.layer(index, &pass);
            let (x, saved) = kept.pop().expect("one entry per layer");
            let saved = match saved {
                Some(saved) => saved,
                None => layer.forward(&x)?.1,
            };
            // The gradient of the first layer's input is needed only to train the embedding.
            let needs_dx = index > 0 || gradients.everything();
            match layer.backward(&x, &saved, &dx, needs_dx, gradients)? {
                Some(next) => dx = next,
                None => return Ok(losses),
            }
        }
        gradients.add_rows(Slot::Embedding, &rows.tokens, &dx)?;
        Ok(losses)
    }

    fn pass<'p>(&self, rows: &'p Rows) -> Result<Pass<'p>> {
        let (cos, sin) = {
            let device = self.decoder.weights().embedding.device();
            let positions = Indices::uploaded(&rows.positions, device)?;
            self.decoder.rope().at(&positions)?
        };
        Ok(Pass {
            cos,
            sin,
            rows,
            scale: self.decoder.scale(),
            eps: self.decoder.config().rms_norm_eps,
        })
    }

    fn layer<'p>(&'p self, index: usize, pass: &'p Pass<'p>) -> layer::LayerPass<'p> {
        layer::LayerPass {
            index,
            layer: &self.decoder.weights().layers[index],
            config: self.decoder.config(),
            pass,
        }
    }

    /// Output of the last layer, `[rows, hidden]`.
    fn hidden(&self, rows: &Rows, pass: &Pass) -> Result<Tensor> {
        let mut x = self.embed(rows)?;
        for index in 0..self.decoder.weights().layers.len() {
            x = self.layer(index, pass).forward(&x)?.0;
        }
        Ok(x)
    }

    fn embed(&self, rows: &Rows) -> Result<Tensor> {
        let embedding = &self.decoder.weights().embedding;
        embedding.gather_rows(&Indices::uploaded(&rows.tokens, embedding.device())?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        layer::product(hidden, &self.decoder.weights().head)
    }

    /// The learned rows of the last layer's output with their targets, in chunks whose logits stay
    /// within [`MAX_LOGITS`].
    fn chunks<'r>(&self, x: &Tensor, rows: &'r Rows) -> Result<Vec<(Tensor, &'r [u32])>> {
        let chunk = (MAX_LOGITS / self.decoder.config().vocab_size).max(1);
        let learned = rows.learned.chunks(chunk).zip(rows.targets.chunks(chunk));
        let chunk_of = |(rows, targets): (&[u32], &'r [u32])| {
            Ok((
                gather_rows(x, &Indices::uploaded(rows, x.device())?)?,
                targets,
            ))
        };
        learned.map(chunk_of).collect()
    }

    /// The losses, and the gradient of the last layer's output, `[rows, hidden]`.
    fn head_gradients(
        &self,
        pass: &Pass,
        x: &Tensor,
        weight: f32,
        gradients: &mut dyn Gradients,
    ) -> Result<(Vec<f32>, Tensor)> {
        let weights = self.decoder.weights();
        let tied = self.decoder.config().tie_word_embeddings;
        let head = if tied { Slot::Embedding } else { Slot::Head };
        let mut losses = Vec::with_capacity(pass.rows.targets.len());
        let mut parts = Vec::new();
        for (x, targets) in self.chunks(x, pass.rows)? {
            let hidden = pass.norm(&x, &weights.norm)?;
            let logits = self.logits(&hidden)?;
            // In place: `logits` holds its gradient afterwards.
            losses.extend(cross_entropy(&logits, targets, weight)?);
            if gradients.everything() {
                gradients.product(head, &hidden, &logits)?;
            }
            let dy = logits.matmul(weights.head.weight()?)?;
            pass.norm_gradient(Slot::Norm, &x, &dy, gradients)?;
            parts.push(pass.norm_backward(&x, &weights.norm, &dy)?);
        }
        let dx = x.zeros_like()?;
        accumulate::add_rows(&dx, &pass.rows.learned, &Tensor::cat(&parts, 0)?)?;
        Ok((losses, dx))
    }
}
