//! Export of a base as a folder in Hugging Face layout, which any tool can load.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::config::{Family, ModelConfig, RopeScaling};
use super::error::{ModelError, first_line};

/// Writes `config.json` and `model.safetensors` (parameters by checkpoint name) into `folder`,
/// which is created if it does not exist.
///
/// # Errors
/// The folder cannot be written, or a `config.json` cannot express the decoder's rotation
/// frequencies, as with some GGUF files.
pub fn save_folder(
    folder: &Path,
    config: &ModelConfig,
    parameters: &BTreeMap<String, Tensor>,
) -> Result<(), ModelError> {
    fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let config_path = folder.join("config.json");
    let json = to_json(config).map_err(|reason| ModelError::invalid(&config_path, reason))?;
    fs::write(&config_path, format!("{json:#}\n")).map_err(ModelError::io(&config_path))?;
    let weights_path = folder.join("model.safetensors");
    // Views of fused weights, which become separate tensors in the file.
    let parameters: HashMap<&String, Tensor> = parameters
        .iter()
        .map(|(name, tensor)| (name, tensor.clone()))
        .collect();
    candle_core::safetensors::save(&parameters, &weights_path)
        .map_err(|error| ModelError::invalid(&weights_path, first_line(&error)))
}

/// Checks that [`save_folder`] can export `config` to `folder`, which must be missing or empty, so
/// that files of different bases are not mixed.
///
/// # Errors
/// The folder is not empty or cannot be read, or a `config.json` cannot express the decoder's
/// rotation frequencies.
pub fn check_folder(folder: &Path, config: &ModelConfig) -> Result<(), ModelError> {
    to_json(config).map_err(|reason| ModelError::invalid(folder, reason))?;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(ModelError::io(folder)(error)),
    };
    if entries > 0 {
        return Err(ModelError::invalid(folder, "the folder is not empty"));
    }
    Ok(())
}

/// Serialises a configuration: the inverse of [`ModelConfig::from_json`].
fn to_json(config: &ModelConfig) -> Result<Value, String> {
    let mut json = json!({
        "model_type": match config.family {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        },
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": config.rope_theta,
        "eos_token_id": config.eos_token_ids,
    });
    json["rope_scaling"] = match &config.rope_scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Divisors(_) => {
            return Err("config.json cannot express divisors of rotation frequencies".to_owned());
        }
    };
    if let Some(window) = config.windows.iter().copied().flatten().next() {
        let kind = |window: &Option<usize>| match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        json["sliding_window"] = window.into();
        json["use_sliding_window"] = true.into();
        json["layer_types"] = config.windows.iter().map(kind).collect();
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_reads_back_equal() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
        for folder in fs::read_dir(tiny).unwrap() {
            let text = fs::read_to_string(folder.unwrap().path().join("config.json")).unwrap();
            let config = ModelConfig::from_json(&text).unwrap();
            let again = to_json(&config).unwrap().to_string();
            assert_eq!(ModelConfig::from_json(&again).unwrap(), config);
        }
    }

    #[test]
    fn a_folder_that_is_not_empty_is_refused() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/qwen3");
        let text = fs::read_to_string(tiny.join("config.json")).unwrap();
        let config = ModelConfig::from_json(&text).unwrap();
        let error = check_folder(&tiny, &config).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert!(check_folder(empty.path(), &config).is_ok());
        assert!(check_folder(&empty.path().join("new"), &config).is_ok());
    }

    #[test]
    fn frequency_divisors_are_refused() {
        let tiny =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/qwen3/config.json");
        let mut config = ModelConfig::from_json(&fs::read_to_string(tiny).unwrap()).unwrap();
        config.rope_scaling = RopeScaling::Divisors(vec![1.0; config.head_dim / 2]);
        assert!(to_json(&config).unwrap_err().contains("divisors"));
    }
}
