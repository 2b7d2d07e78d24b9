//! Names of the decoder's trainable tensors.

use std::fmt;

use candle_core::Tensor;

use crate::model::{Projection, Weights};

/// A trainable tensor of the decoder. Projections of the same input are fused into one tensor, as
/// in serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// `[vocab, hidden]`; also the head if it is tied.
    Embedding,
    /// Norm before attention of a layer, `[hidden]`.
    InputNorm(usize),
    /// Weight of a fused projection of a layer, `[out, in]`.
    Weight(usize, Projection),
    /// Bias of a fused projection of a layer, `[out]`.
    Bias(usize, Projection),
    /// Norm of the queries of a layer, `[head_dim]`.
    QueryNorm(usize),
    /// Norm of the keys of a layer, `[head_dim]`.
    KeyNorm(usize),
    /// Norm before the MLP of a layer, `[hidden]`.
    PostAttentionNorm(usize),
    /// Norm after the last layer, `[hidden]`.
    Norm,
    /// `[vocab, hidden]`, if it is not tied.
    Head,
}

impl Slot {
    /// Every slot that `weights` has, in a fixed order.
    pub fn all(weights: &Weights, tied: bool) -> Vec<Self> {
        let mut slots = vec![Self::Embedding, Self::Norm];
        if !tied {
            slots.push(Self::Head);
        }
        for layer in 0..weights.layers.len() {
            slots.extend([
                Self::InputNorm(layer),
                Self::PostAttentionNorm(layer),
                Self::QueryNorm(layer),
                Self::KeyNorm(layer),
            ]);
            for projection in Projection::ALL {
                slots.extend([
                    Self::Weight(layer, projection),
                    Self::Bias(layer, projection),
                ]);
            }
        }
        slots.retain(|slot| slot.tensor(weights).is_some());
        slots
    }

    /// The tensor, if the decoder has it.
    pub fn tensor(self, weights: &Weights) -> Option<&Tensor> {
        match self {
            Self::Embedding => weights.embedding.dense().ok(),
            Self::InputNorm(layer) => Some(&weights.layers[layer].input_norm),
            Self::Weight(layer, projection) => {
                weights.layers[layer].linear(projection).weight().ok()
            }
            Self::Bias(layer, projection) => weights.layers[layer].linear(projection).bias(),
            Self::QueryNorm(layer) => weights.layers[layer].q_norm.as_ref(),
            Self::KeyNorm(layer) => weights.layers[layer].k_norm.as_ref(),
            Self::PostAttentionNorm(layer) => Some(&weights.layers[layer].post_attention_norm),
            Self::Norm => Some(&weights.norm),
            Self::Head => weights.head.weight().ok(),
        }
    }

    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub fn decays(self) -> bool {
        matches!(self, Self::Embedding | Self::Weight(..) | Self::Head)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::InputNorm(layer) => write!(f, "layers.{layer}.input_norm"),
            Self::Weight(layer, projection) => write!(f, "layers.{layer}.{projection:?}.weight"),
            Self::Bias(layer, projection) => write!(f, "layers.{layer}.{projection:?}.bias"),
            Self::QueryNorm(layer) => write!(f, "layers.{layer}.q_norm"),
            Self::KeyNorm(layer) => write!(f, "layers.{layer}.k_norm"),
            Self::PostAttentionNorm(layer) => write!(f, "layers.{layer}.post_attention_norm"),
            Self::Norm => f.write_str("norm"),
            Self::Head => f.write_str("head"),
        }
    }
}
