//! GGUF files: the configuration from their metadata, and their tensors under checkpoint names.

mod header;

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::{Device, Tensor};

use crate::kernels::quantized::QuantizedWeight;
use crate::model::config::{Family, MAX_LAYERS, ModelConfig, RopeScaling};
use crate::model::error::{ModelError, first_line};
use crate::model::read;

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    reader: Mutex<BufReader<File>>,
}

impl Gguf {
    /// Opens a file and reads its header, after a check that bounds what reading it allocates.
    ///
    /// # Errors
    /// The file cannot be read, its header is malformed or too large, or a tensor lies outside the
    /// file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file_bytes = read::regular(path)?;
        let file = File::open(path).map_err(ModelError::io(path))?;
        let mut reader = BufReader::new(file);
        header::check(&mut reader, file_bytes).map_err(|e| ModelError::invalid(path, e))?;
        reader.rewind().map_err(ModelError::io(path))?;
        let content = Content::read(&mut reader).map_err(|e| {
            ModelError::invalid(path, format!("not a GGUF file: {}", first_line(&e)))
        })?;
        for (name, info) in &content.tensor_infos {
            check_place(info, content.tensor_data_offset, file_bytes)
                .map_err(|fault| ModelError::invalid(path, format!("tensor {name}: {fault}")))?;
        }
        Ok(Self {
            path: path.to_owned(),
            content,
            reader: Mutex::new(reader),
        })
    }

    /// The header: metadata and tensor infos.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The configuration of the decoder, from the metadata.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        self.read_config()
            .map_err(|reason| ModelError::invalid(&self.path, reason))
    }

    fn read_config(&self) -> Result<ModelConfig, String> {
        let architecture = self.text("general.architecture")?;
        let family = Family::from_model_type(architecture)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let size = |name: &str| self.number(&key(name));
        let heads = size("attention.head_count")?;
        let hidden_size = size("embedding_length")?;
        let layers = size("block_count")?;
        if layers > MAX_LAYERS {
            return Err(format!(
                "block_count is {layers}, expected at most {MAX_LAYERS}"
            ));
        }
        let embedding = self
            .content
            .tensor_infos
            .get("token_embd.weight")
            .ok_or("tensor token_embd.weight is missing")?;
        let has_tensor = |name: &str| self.content.tensor_infos.contains_key(name);
        let has_key = |name: &str| self.content.metadata.contains_key(&key(name));
        let window = has_key("attention.sliding_window")
            .then(|| size("attention.sliding_window"))
            .transpose()?
            .filter(|&w| w > 0);
        let config = ModelConfig {
            family,
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            vocab_size: embedding.shape.dims().first().copied().unwrap_or(0),
            layers,
            heads,
            kv_heads: if has_key("attention.head_count_kv") {
                size("attention.head_count_kv")?
            } else {
                heads
            },
            head_dim: if has_key("attention.key_length") {
                size("attention.key_length")?
            } else {
                hidden_size / heads.max(1)
            },
            rms_norm_eps: self.float(&key("attention.layer_norm_rms_epsilon"))?,
            max_position_embeddings: size("context_length")?,
            tie_word_embeddings: !has_tensor("output.weight"),
            qkv_bias: has_tensor("blk.0.attn_q.bias"),
            output_bias: has_tensor("blk.0.attn_output.bias"),
            mlp_bias: has_tensor("blk.0.ffn_down.bias"),
            qk_norm: has_tensor("blk.0.attn_q_norm.weight"),
            rope_theta: if has_key("rope.freq_base") {
                self.float(&key("rope.freq_base"))?
            } else {
                10_000.0
            },
            rope_scaling: self.rope_scaling(&key("rope.scaling"))?,
            windows: vec![window; layers],
            eos_token_ids: self.eos_token_ids(),
        };
        config.check()?;
        Ok(config)
    }

    fn rope_scaling(&self, key: &str) -> Result<RopeScaling, String> {
        if self.content.tensor_infos.contains_key("rope_freqs.weight") {
            let divisors = self
                .tensor("rope_freqs.weight")
                .and_then(|tensor| tensor.flatten_all()?.to_vec1())
                .map_err(|e| first_line(&e))?;
            return Ok(RopeScaling::Divisors(divisors));
        }
        let kind = format!("{key}.type");
        match self
            .content
            .metadata
            .get(&kind)
            .and_then(|v| v.to_string().ok())
        {
            None => Ok(RopeScaling::None),
            Some(kind) if kind == "none" => Ok(RopeScaling::None),
            Some(kind) if kind == "linear" => Ok(RopeScaling::Linear {
                factor: self.float(&format!("{key}.factor"))?,
            }),
            Some(kind) => Err(format!(
                "rope scaling {kind:?} is not supported: expected none or linear"
            )),
        }
    }

    fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        for key in ["eos", "eot", "eom"] {
            let id = self.number(&format!("tokenizer.ggml.{key}_token_id"));
            if let Some(id) = id.ok().and_then(|id| u32::try_from(id).ok()) {
                ids.push(id);
            }
        }
        ids.dedup();
        ids
    }

    fn value(&self, key: &str) -> Result<&Value, String> {
        let value = self.content.metadata.get(key);
        value.ok_or_else(|| format!("metadata {key} is missing"))
    }

    fn text(&self, key: &str) -> Result<&str, String> {
        let text = self.value(key)?.to_string();
        text.map(String::as_str)
            .map_err(|_| format!("metadata {key} is not a string"))
    }

    fn number(&self, key: &str) -> Result<usize, String> {
        let integer = match self.value(key)? {
            Value::U8(n) => Some(u64::from(*n)),
            Value::U16(n) => Some(u64::from(*n)),
            Value::U32(n) => Some(u64::from(*n)),
            Value::U64(n) => Some(*n),
            Value::I8(n) => u64::try_from(*n).ok(),
            Value::I16(n) => u64::try_from(*n).ok(),
            Value::I32(n) => u64::try_from(*n).ok(),
            Value::I64(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        integer
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| format!("metadata {key} is not a non-negative integer"))
    }

    fn float(&self, key: &str) -> Result<f32, String> {
        match self.value(key)? {
            Value::F32(x) => Ok(*x),
            Value::F64(x) => Ok(*x as f32),
            _ => Err(format!("metadata {key} is not a number")),
        }
    }

    /// A tensor by its name in the file, dequantised to f32.
    fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        self.stored(name)?.dequantize(&Device::Cpu)
    }

    /// A tensor by its name in the file, as stored.
    fn stored(&self, name: &str) -> candle_core::Result<QTensor> {
        let mut reader = self.reader.lock().expect("no reader panicked");
        self.content.tensor(&mut *reader, name, &Device::Cpu)
    }

    /// Dtype and shape of a stored parameter, by its checkpoint name; `None` if the file has no
    /// such tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.content.tensor_infos.get(&stored_name(name)?)
    }

    /// Reads a matrix in its stored form, by its checkpoint name. The shape must have been checked
    /// against the configuration.
    ///
    /// # Errors
    /// The matrix cannot be read, or its kind has no kernel.
    pub fn load_quantized(
        &self,
        name: &str,
        config: &ModelConfig,
    ) -> Result<QuantizedWeight, ModelError> {
        let stored = stored_name(name).unwrap_or_default();
        let weight = self.stored(&stored).and_then(|tensor| {
            let rows = tensor.shape().dims2()?.0;
            let order = (0..rows).map(|row| match permuted_heads(name, config) {
                Some(heads) => stored_row(row, rows / heads),
                None => row,
            });
            QuantizedWeight::new(&tensor, order)
        });
        let naming = |e| ModelError::invalid(&self.path, format!("{stored}: {}", first_line(&e)));
        weight.map_err(naming)
    }

    /// Reads a parameter in f32, by its checkpoint name; `None` if the file has no such tensor.
    ///
    /// # Errors
    /// The tensor cannot be read.
    pub fn load(&self, name: &str, config: &ModelConfig) -> Result<Option<Tensor>, ModelError> {
        let Some(stored) = stored_name(name) else {
            return Ok(None);
        };
        if !self.content.tensor_infos.contains_key(&stored) {
            return Ok(None);
        }
        let tensor = self.tensor(&stored).map_err(|e| {
            ModelError::invalid(&self.path, format!("{stored}: {}", first_line(&e)))
        })?;
        match permuted_heads(name, config) {
            Some(heads) => Ok(Some(unpermute(&tensor, heads)?)),
            None => Ok(Some(tensor)),
        }
    }
}

/// Checks that a tensor lies within the file.
fn check_place(info: &TensorInfo, data: u64, file_bytes: u64) -> Result<(), String> {
    let (elements, block) = (info.shape.elem_count(), info.ggml_dtype.block_size());
    if !elements.is_multiple_of(block) {
        return Err(format!(
            "its {elements} values are not whole blocks of {block}"
        ));
    }
    let bytes = (elements / block).checked_mul(info.ggml_dtype.type_size());
    let end = data
        .checked_add(info.offset)
        .and_then(|start| start.checked_add(bytes? as u64));
    match end {
        Some(end) if end <= file_bytes => Ok(()),
        _ => Err(format!("it ends outside the file of {file_bytes} bytes")),
    }
}

/// Number of heads of a parameter whose rows llama.cpp has permuted; `None` for other parameters.
fn permuted_heads(name: &str, config: &ModelConfig) -> Option<usize> {
    let permutes = matches!(config.family, Family::Llama | Family::Mistral);
    if permutes && name.contains(".q_proj.") {
        Some(config.heads)
    } else if permutes && name.contains(".k_proj.") {
        Some(config.kv_heads)
    } else {
        None
    }
}

/// Row of a permuted parameter in the file, for heads of `head_rows` rows: [`unpermute`] for one
/// row.
fn stored_row(row: usize, head_rows: usize) -> usize {
    let (head, place) = (row / head_rows, row % head_rows);
    let (half, pair) = (place / (head_rows / 2), place % (head_rows / 2));
    head * head_rows + 2 * pair + half
}

/// Undoes llama.cpp's permutation of query and key rows: (head, pair, half) becomes (head, half,
/// pair).
fn unpermute(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let rows = tensor.dim(0)?;
    let rest = tensor.elem_count() / rows;
    let pairs = tensor.reshape((heads, rows / heads / 2, 2, rest))?;
    pairs.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

/// Name in a GGUF file of a parameter: `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`.
fn stored_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = part.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}
