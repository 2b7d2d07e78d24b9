//! Resident weights. Projections with the same input are fused into one weight; the checkpoint
//! names of their parameters refer to views of it.

use std::collections::BTreeMap;

use candle_core::{DType, Result as CandleResult, Tensor};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::device::Placement;
use super::error::ModelError;
use crate::kernels::cpu::pages;
use crate::kernels::quantized::QuantizedWeight;
use crate::kernels::weight::Weight;
use crate::ticket::BaseManifest;

/// A linear layer: weight `[out, in]`, bias `[out]`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// The dense weight `[out, in]`, for training.
    ///
    /// # Errors
    /// The weight is kept quantised.
    pub fn weight(&self) -> CandleResult<&Tensor> {
        self.weight.dense()
    }

    /// The bias `[out]`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x·Wᵀ + b`: `[rows, in]` → `[rows, out]`.
    ///
    /// # Errors
    /// The shape or dtype of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.weight.linear(x, self.bias.as_ref())
    }

    /// Like [`Self::forward`], but in f32 on any device: for logits, and for sums that are rounded
    /// later.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn forward_f32(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.weight.linear_f32(x, self.bias.as_ref())
    }
}

/// The fused projections of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// Queries, keys and values of attention.
    Qkv,
    /// Output of attention.
    O,
    /// Gate and up projection of the MLP.
    GateUp,
    /// Down projection of the MLP.
    Down,
}

impl Projection {
    /// All projections, in the order of a forward pass.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// Names within a layer of the modules whose rows are concatenated in the fused weight.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Qkv => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            Self::O => &["self_attn.o_proj"],
            Self::GateUp => &["mlp.gate_proj", "mlp.up_proj"],
            Self::Down => &["mlp.down_proj"],
        }
    }

    /// The parameters in the fused weight of `layer`: name, first row, number of rows.
    ///
    /// # Panics
    /// `manifest` does not have them.
    pub fn parts(self, layer: usize, manifest: &BaseManifest) -> Vec<(String, usize, usize)> {
        let mut first = 0;
        let part = |module: &&str| {
            let name = format!("model.layers.{layer}.{module}.weight");
            let rows = manifest.parameters[&name].shape[0];
            first += rows;
            (name, first - rows, rows)
        };
        self.modules().iter().map(part).collect()
    }
}

/// Weights of one decoder layer. The fused linear layers are described in [`Projection`].
#[derive(Debug)]
pub struct Layer {
    /// RMS norm before attention, `[hidden]`.
    pub input_norm: Tensor,
    /// [`Projection::Qkv`].
    pub qkv: Linear,
    /// RMS norm of each query head, `[head_dim]`.
    pub q_norm: Option<Tensor>,
    /// RMS norm of each key head, `[head_dim]`.
    pub k_norm: Option<Tensor>,
    /// [`Projection::O`].
    pub o: Linear,
    /// RMS norm before the MLP, `[hidden]`.
    pub post_attention_norm: Tensor,
    /// [`Projection::GateUp`].
    pub gate_up: Linear,
    /// [`Projection::Down`].
    pub down: Linear,
}

impl Layer {
    /// The linear layer of a projection.
    pub fn linear(&self, projection: Projection) -> &Linear {
        match projection {
            Projection::Qkv => &self.qkv,
            Projection::O => &self.o,
            Projection::GateUp => &self.gate_up,
            Projection::Down => &self.down,
        }
    }
}

/// All weights of a decoder.
#[derive(Debug)]
pub struct Weights {
    /// Token embedding, `[vocab, hidden]`.
    pub embedding: Weight,
    /// The layers, from input to output.
    pub layers: Vec<Layer>,
    /// RMS norm before the head, `[hidden]`.
    pub norm: Tensor,
    /// Output head, `[vocab, hidden]`.
    pub head: Linear,
}

/// Shapes of all parameters of a decoder, by checkpoint name. A tied head is the embedding and is
/// not listed.
pub fn parameters(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut all = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| all.insert(name, shape.to_vec());
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    add(
        "model.embed_tokens.weight".into(),
        &[config.vocab_size, hidden],
    );
    add("model.norm.weight".into(), &[hidden]);
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), &[config.vocab_size, hidden]);
    }
    for layer in 0..config.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        add(name("input_layernorm.weight"), &[hidden]);
        add(name("post_attention_layernorm.weight"), &[hidden]);
        if config.qk_norm {
            add(name("self_attn.q_norm.weight"), &[config.head_dim]);
            add(name("self_attn.k_norm.weight"), &[config.head_dim]);
        }
        let projections = [
            ("self_attn.q_proj", queries, hidden, config.qkv_bias),
            ("self_attn.k_proj", keys, hidden, config.qkv_bias),
            ("self_attn.v_proj", keys, hidden, config.qkv_bias),
            ("self_attn.o_proj", hidden, queries, config.output_bias),
            ("mlp.gate_proj", inner, hidden, config.mlp_bias),
            ("mlp.up_proj", inner, hidden, config.mlp_bias),
            ("mlp.down_proj", hidden, inner, config.mlp_bias),
        ];
        for (projection, out, inner, bias) in projections {
            add(name(&format!("{projection}.weight")), &[out, inner]);
            if bias {
                add(name(&format!("{projection}.bias")), &[out]);
            }
        }
    }
    all
}

/// Number of layers of a base.
pub fn layers(manifest: &BaseManifest) -> usize {
    let indices = manifest.parameters.keys().filter_map(|name| {
        let rest = name.strip_prefix("model.layers.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    });
    indices.max().map_or(0, |last| last + 1)
}

/// Whether tickets may adapt a parameter: only attention and MLP projection weights, as in the LoTA
/// paper.
pub fn is_adaptable(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

/// Loads the resident weights from a checkpoint.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    place: &'a Placement,
    keep_quantized: bool,
    shapes: BTreeMap<String, Vec<usize>>,
    views: BTreeMap<String, Weight>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Loader<'a> {
    /// A loader that calls `progress` with the number of parameters loaded and their total.
    pub fn new(
        checkpoint: &'a Checkpoint,
        place: &'a Placement,
        keep_quantized: bool,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        Self {
            shapes: parameters(checkpoint.config()),
            checkpoint,
            place,
            keep_quantized,
            views: BTreeMap::new(),
            progress,
        }
    }

    /// Loads the weights. Also returns all parameters by checkpoint name, as views of the same
    /// storage.
    ///
    /// # Errors
    /// A parameter is missing, has another shape, or cannot be read; or the device is out of
    /// memory.
    pub fn load(mut self) -> Result<(Weights, BTreeMap<String, Weight>), ModelError> {
        let config = self.checkpoint.config();
        let embedding = self.matrix(&["model.embed_tokens.weight".to_owned()])?;
        let layers = (0..config.layers)
            .map(|i| self.layer(i))
            .collect::<Result<_, ModelError>>()?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            self.matrix(&["lm_head.weight".to_owned()])?
        };
        let weights = Weights {
            embedding,
            layers,
            norm: self.single("model.norm.weight", self.place.activations)?,
            head: Linear {
                weight: head,
                bias: None,
            },
        };
        Ok((weights, self.views))
    }

    fn layer(&mut self, layer: usize) -> Result<Layer, ModelError> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let config = self.checkpoint.config();
        let activations = self.place.activations;
        let mut norm = |part| self.single(&name(part), activations);
        let input_norm = norm("input_layernorm.weight")?;
        let post_attention_norm = norm("post_attention_layernorm.weight")?;
        let (q_norm, k_norm) = if config.qk_norm {
            let q_norm = norm("self_attn.q_norm.weight")?;
            (Some(q_norm), Some(norm("self_attn.k_norm.weight")?))
        } else {
            (None, None)
        };
        let mut linear = |projection: Projection, bias| {
            let modules = projection.modules().iter();
            let modules: Vec<String> = modules.map(|module| name(module)).collect();
            self.linear(&modules, bias)
        };
        Ok(Layer {
            input_norm,
            qkv: linear(Projection::Qkv, config.qkv_bias)?,
            q_norm,
            k_norm,
            o: linear(Projection::O, config.output_bias)?,
            post_attention_norm,
            gate_up: linear(Projection::GateUp, config.mlp_bias)?,
            down: linear(Projection::Down, config.mlp_bias)?,
        })
    }

    fn linear(&mut self, modules: &[String], bias: bool) -> Result<Linear, ModelError> {
        let names = |kind: &str| -> Vec<String> {
            modules
                .iter()
                .map(|module| format!("{module}.{kind}"))
                .collect()
        };
        let weight = self.matrix(&names("weight"))?;
        let bias = if bias {
            Some(self.fused(&names("bias"), self.place.activations)?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    fn single(&mut self, name: &str, dtype: DType) -> Result<Tensor, ModelError> {
        self.fused(&[name.to_owned()], dtype)
    }

    /// Matrices concatenated along their rows. They are loaded as stored if quantised weights are
    /// to be kept and any of them is quantised.
    fn matrix(&mut self, names: &[String]) -> Result<Weight, ModelError> {
        let is_quantized = |name: &String| self.checkpoint.is_quantized(name);
        if self.keep_quantized && names.iter().any(is_quantized) {
            return self.quantized(names);
        }
        let dense = self.fused(names, self.place.weights)?;
        Ok(Weight::Dense(dense))
    }

    fn quantized(&mut self, names: &[String]) -> Result<Weight, ModelError> {
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let part = self.checkpoint.load_quantized(name, &self.shapes[name])?;
            let view = Weight::Quantized(part.clone());
            self.views.insert(name.clone(), view);
            parts.push(part);
        }
        (self.progress)(self.views.len(), self.shapes.len());
        Ok(Weight::Quantized(QuantizedWeight::cat(&parts)?))
    }

    /// Parameters concatenated along their rows, in one storage.
    fn fused(&mut self, names: &[String], dtype: DType) -> Result<Tensor, ModelError> {
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let part = self.checkpoint.load(name, &self.shapes[name])?;
            parts.push(part.to_dtype(dtype)?);
        }
        let on_host = match parts.as_slice() {
            [part] => part.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        let fused = on_host.to_device(&self.place.device)?;
        pages::use_huge_pages(&fused)?;
        let mut row = 0;
        for (name, part) in names.iter().zip(&parts) {
            let rows = part.dim(0)?;
            let view = Weight::Dense(fused.narrow(0, row, rows)?);
            self.views.insert(name.clone(), view);
            row += rows;
        }
        (self.progress)(self.views.len(), self.shapes.len());
        Ok(fused)
    }
}
