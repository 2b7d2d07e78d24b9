//! The configuration of a decoder.

mod json;

/// Supported model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama and its derivatives, such as SmolLM2.
    Llama,
    /// Mistral, with an optional sliding window in all layers.
    Mistral,
    /// Qwen 2 and 2.5, with biases on q, k and v.
    Qwen2,
    /// Qwen 3, with RMS norms on queries and keys.
    Qwen3,
}

/// Configuration of a decoder. Sizes are in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads per layer.
    pub heads: usize,
    /// Number of key and value heads per layer; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Context length that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head shares the weight of the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether the MLP projections have biases.
    pub mlp_bias: bool,
    /// Whether each head's query and key pass an RMS norm.
    pub qk_norm: bool,
    /// Base of the rotation frequencies.
    pub rope_theta: f32,
    /// Scaling of the rotation frequencies.
    pub rope_scaling: RopeScaling,
    /// Sliding window of each layer, in positions; `None` attends to all.
    pub windows: Vec<Option<usize>>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

/// Scaling of rotation frequencies for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones are kept, those in between are
    /// interpolated.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Frequencies with fewer turns than this over the original context are low.
        low_freq_factor: f32,
        /// Frequencies with more turns than this over the original context are high.
        high_freq_factor: f32,
        /// The original context length, in positions.
        original_max_position_embeddings: usize,
    },
    /// One divisor per frequency, as in GGUF files (`rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// Upper bound on the other sizes, so that no product of them overflows.
const MAX_SIZE: usize = 1 << 24;

/// Upper bound on the layers of a model, which bounds allocations.
pub(super) const MAX_LAYERS: usize = 10_000;

impl Family {
    /// The family of a `model_type` or GGUF architecture.
    pub(super) fn from_model_type(name: &str) -> Result<Self, String> {
        match name {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            _ => Err(format!(
                "model type {name:?} is not supported: expected llama, mistral, qwen2 or qwen3"
            )),
        }
    }
}

impl ModelConfig {
    /// Rejects impossible sizes before weights are read.
    pub(super) fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
        ];
        for (name, size) in sizes {
            if size == 0 {
                return Err(format!("{name} is 0"));
            }
            if size > MAX_SIZE {
                return Err(format!("{name} is {size}, expected at most {MAX_SIZE}"));
            }
        }
        if self.max_position_embeddings == 0 {
            return Err("max_position_embeddings is 0".to_owned());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!(
                "{heads} attention heads cannot share {kv_heads} key heads evenly"
            ));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > MAX_SIZE {
            return Err(format!(
                "the head size is {}, expected an even number above 0",
                self.head_dim
            ));
        }
        if let RopeScaling::Divisors(divisors) = &self.rope_scaling
            && divisors.len() != self.head_dim / 2
        {
            let (found, expected) = (divisors.len(), self.head_dim / 2);
            return Err(format!(
                "there are {found} rope divisors, expected {expected}, one per pair of a head"
            ));
        }
        self.check_numbers()
    }

    /// Checks that no number makes all logits NaN.
    fn check_numbers(&self) -> Result<(), String> {
        let mut positive = vec![
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
        ];
        match &self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive.push(("the rope factor", *factor)),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive.extend([
                    ("the rope factor", *factor),
                    ("low_freq_factor", *low_freq_factor),
                    ("high_freq_factor", *high_freq_factor),
                ]);
                if low_freq_factor >= high_freq_factor {
                    return Err(format!(
                        "low_freq_factor is {low_freq_factor}, expected less than \
                         high_freq_factor, which is {high_freq_factor}"
                    ));
                }
                if *original_max_position_embeddings == 0 {
                    return Err("original_max_position_embeddings is 0".to_owned());
                }
            }
            RopeScaling::Divisors(divisors) => {
                positive.extend(divisors.iter().map(|&divisor| ("a rope divisor", divisor)));
            }
        }
        let is_bad = |&(_, value): &(_, f32)| !(value.is_finite() && value > 0.0);
        match positive.into_iter().find(is_bad) {
            Some((name, value)) => Err(format!(
                "{name} is {value}, expected a finite number above 0"
            )),
            None => Ok(()),
        }
    }

    /// Adds end-of-text tokens that are not known yet.
    pub(super) fn add_eos(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
    }

    /// Elements in the KV cache per token, over all layers.
    pub(super) fn kv_values_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim
    }
}

#[cfg(test)]
mod tests;
