//! Parser of `config.json`, with old or new field names.

use std::path::Path;

use serde::Deserialize;

use super::{Family, MAX_LAYERS, ModelConfig, RopeScaling};
use crate::model::{ModelError, read};

/// Maximum size of a configuration file.
const MAX_BYTES: u64 = 1 << 20;

impl ModelConfig {
    /// Reads `config.json`, and the end-of-text tokens of `generation_config.json` if it exists.
    ///
    /// # Errors
    /// A file cannot be read or is invalid; see [`Self::from_json`].
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        if !path.exists() {
            let expected = "config.json, tokenizer.json and *.safetensors";
            return Err(ModelError::Missing { path, expected });
        }
        let text = read::text(&path, MAX_BYTES)?;
        let mut config =
            Self::from_json(&text).map_err(|reason| ModelError::invalid(&path, reason))?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            let text = read::text(&path, MAX_BYTES)?;
            let raw: RawGenerationConfig =
                serde_json::from_str(&text).map_err(|e| ModelError::invalid(&path, e))?;
            config.add_eos(raw.eos_token_id.map(Vec::from).unwrap_or_default());
        }
        Ok(config)
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// A description of the problem: invalid JSON, an unsupported architecture, or impossible
    /// sizes.
    pub(in crate::model) fn from_json(text: &str) -> Result<Self, String> {
        let raw: RawConfig = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let family = Family::from_model_type(&raw.model_type)?;
        if raw.num_hidden_layers > MAX_LAYERS {
            let layers = raw.num_hidden_layers;
            return Err(format!(
                "num_hidden_layers is {layers}, expected at most {MAX_LAYERS}"
            ));
        }
        if raw.hidden_act != "silu" {
            return Err(format!(
                "hidden_act {:?} is not supported: expected silu",
                raw.hidden_act
            ));
        }
        let heads = raw.num_attention_heads;
        let attention_bias = raw.attention_bias.unwrap_or(family == Family::Qwen2);
        let config = Self {
            family,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
            rms_norm_eps: raw.rms_norm_eps,
            max_position_embeddings: raw.max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias,
            output_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            rope_theta: rope_theta(&raw),
            rope_scaling: rope_scaling(&raw)?,
            windows: windows(&raw, family),
            eos_token_ids: raw.eos_token_id.map(Vec::from).unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: String,
    rms_norm_eps: f32,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    eos_token_id: Option<TokenIds>,
}

fn silu() -> String {
    "silu".to_owned()
}

/// The old `rope_scaling` or the new `rope_parameters`, which also holds the base frequency.
#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The old name of `rope_type`; transformers wrote both for years.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        match ids {
            TokenIds::One(id) => vec![id],
            TokenIds::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawGenerationConfig {
    eos_token_id: Option<TokenIds>,
}

fn rope_theta(raw: &RawConfig) -> f32 {
    let rope = raw.rope_parameters.as_ref();
    rope.and_then(|rope| rope.rope_theta)
        .or(raw.rope_theta)
        .unwrap_or(10_000.0)
}

fn rope_scaling(raw: &RawConfig) -> Result<RopeScaling, String> {
    let Some(rope) = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()) else {
        return Ok(RopeScaling::None);
    };
    let need = |value: Option<f32>, name| value.ok_or(format!("rope parameter {name} is missing"));
    match rope.rope_type.as_deref().or(rope.old_type.as_deref()) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: need(rope.factor, "factor")?,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: need(rope.factor, "factor")?,
            low_freq_factor: need(rope.low_freq_factor, "low_freq_factor")?,
            high_freq_factor: need(rope.high_freq_factor, "high_freq_factor")?,
            original_max_position_embeddings: rope
                .original_max_position_embeddings
                .ok_or("rope parameter original_max_position_embeddings is missing")?,
        }),
        Some(other) => Err(format!(
            "rope type {other:?} is not supported: expected default, linear or llama3"
        )),
    }
}

/// The sliding window of each layer. Mistral has one in all layers; Qwen in the layers that
/// `layer_types` names or, without it, from `max_window_layers` on if `use_sliding_window` is set.
fn windows(raw: &RawConfig, family: Family) -> Vec<Option<usize>> {
    let slides = |layer: usize| match (family, &raw.layer_types) {
        (Family::Llama, _) => false,
        (_, Some(types)) => types.get(layer).is_some_and(|t| t == "sliding_attention"),
        (Family::Mistral, None) => true,
        (Family::Qwen2 | Family::Qwen3, None) => {
            raw.use_sliding_window.unwrap_or(false) && layer >= raw.max_window_layers.unwrap_or(0)
        }
    };
    let is_limit = |window: &usize| (1..raw.max_position_embeddings).contains(window);
    let window = |layer| {
        raw.sliding_window
            .filter(is_limit)
            .filter(|_| slides(layer))
    };
    (0..raw.num_hidden_layers).map(window).collect()
}
