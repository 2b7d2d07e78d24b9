//! Shapes of synthetic bases.

use std::fmt;
use std::str::FromStr;

use crate::model::{Family, ModelConfig, RopeScaling};

/// Shape of a known model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Llama 2 7B.
    B7,
    /// TinyLlama 1.1B.
    B1,
    /// SmolLM2 135M.
    M135,
    /// Two small layers, for a smoke test; the times are not meaningful.
    Tiny,
}

impl Shape {
    const ALL: [Self; 4] = [Self::B7, Self::B1, Self::M135, Self::Tiny];

    fn name(self) -> &'static str {
        match self {
            Self::B7 => "7b",
            Self::B1 => "1b",
            Self::M135 => "135m",
            Self::Tiny => "tiny",
        }
    }

    /// Configuration of a model of this shape, for sequences of up to `positions` tokens.
    pub fn config(self, positions: usize) -> ModelConfig {
        let ([hidden_size, intermediate_size, vocab_size], layers, [heads, kv_heads]) = match self {
            Self::B7 => ([4096, 11_008, 32_000], 32, [32, 32]),
            Self::B1 => ([2048, 5632, 32_000], 22, [32, 4]),
            Self::M135 => ([576, 1536, 49_152], 30, [9, 3]),
            Self::Tiny => ([64, 96, 128], 2, [4, 2]),
        };
        ModelConfig {
            family: Family::Llama,
            hidden_size,
            intermediate_size,
            vocab_size,
            layers,
            heads,
            kv_heads,
            head_dim: hidden_size / heads,
            rms_norm_eps: 1e-5,
            max_position_embeddings: positions,
            tie_word_embeddings: self == Self::M135,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            windows: vec![None; layers],
            eos_token_ids: Vec::new(),
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == text);
        found.ok_or_else(|| format!("{text:?} is not a shape: 7b, 1b, 135m or tiny"))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
