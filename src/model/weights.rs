//! The resident parameters: projections that read the same input are fused into one weight, and
//! stay addressable under their checkpoint names as views of it.

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
    /// `[out, in]`, to train.
    ///
    /// # Errors
    /// If it is kept quantised.
    pub fn weight(&self) -> CandleResult<&Tensor> {
        self.weight.dense()
    }

    /// `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `[rows, in]` → `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.weight.linear(x, self.bias.as_ref())
    }

    /// As [`Self::forward`], in f32 on any device: for logits, and to be added to before it is rounded.
    pub fn wide(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.weight.wide(x, self.bias.as_ref())
    }
}

/// The projections of a layer, as they are fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    Qkv,
    O,
    GateUp,
    Down,
}

impl Projection {
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// The modules whose rows follow one another in the weight, by their names in a layer.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Qkv => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            Self::O => &["self_attn.o_proj"],
            Self::GateUp => &["mlp.gate_proj", "mlp.up_proj"],
            Self::Down => &["mlp.down_proj"],
        }
    }

    /// The parameters that a layer's fused weight holds, by name: the row that each begins at, and how
    /// many it has.
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

/// One decoder layer.
#[derive(Debug)]
pub struct Layer {
    pub input_norm: Tensor,
    pub qkv: Linear,
    pub q_norm: Option<Tensor>,
    pub k_norm: Option<Tensor>,
    pub o: Linear,
    pub post_attention_norm: Tensor,
    pub gate_up: Linear,
    pub down: Linear,
}

impl Layer {
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
    /// `[vocab, hidden]`.
    pub embedding: Weight,
    pub layers: Vec<Layer>,
    pub norm: Tensor,
    pub head: Linear,
}

/// Every parameter of a decoder with its shape, in byte order of the checkpoint names. A tied head
/// is the embedding and is not listed.
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

/// How many layers a base has.
pub fn layers(manifest: &BaseManifest) -> usize {
    let layers = manifest.parameters.keys().filter_map(|name| {
        let rest = name.strip_prefix("model.layers.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    });
    layers.max().map_or(0, |last| last + 1)
}

/// Whether tickets may adapt a parameter: the attention and MLP projection weights, as in the paper.
pub fn is_adaptable(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

/// Reads a checkpoint into resident weights.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    place: &'a Placement,
    keep_quantized: bool,
    shapes: BTreeMap<String, Vec<usize>>,
    views: BTreeMap<String, Weight>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Loader<'a> {
    /// `progress` is told of weights read, and of how many there are.
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

    /// The weights, and every parameter by its checkpoint name: a view that shares their storage.
    pub fn load(mut self) -> Result<(Weights, BTreeMap<String, Weight>), ModelError> {
        let config = self.checkpoint.config();
        let embedding = self.matrix(&["model.embed_tokens.weight".to_owned()])?;
        let layers: Result<_, ModelError> = (0..config.layers).map(|i| self.layer(i)).collect();
        let layers = layers?;
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

    /// Matrices one after the other along their rows: as they are stored, where any is quantised and
    /// that is to be kept.
    fn matrix(&mut self, names: &[String]) -> Result<Weight, ModelError> {
        let mut names_of = names.iter();
        if self.keep_quantized && names_of.any(|name| self.checkpoint.is_quantized(name)) {
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

    /// Parameters one after the other along their rows, in one storage.
    fn fused(&mut self, names: &[String], dtype: DType) -> Result<Tensor, ModelError> {
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let part = self.checkpoint.load(name, &self.shapes[name])?;
            parts.push(part.to_dtype(dtype)?);
        }
        let fused = match parts.as_slice() {
            [part] => part.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        let fused = fused.to_device(&self.place.device)?;
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
