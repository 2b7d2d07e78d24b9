//! A tiny random base that the real binary serves. Each of its tokens is one printable character,
//! so the text of an answer holds every token of it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::model::manifest;
use tombola::ticket::{BaseManifest, DeltaDtype};

use super::environment::{scratch, utf8};
use super::tickets::{RandomDeltas, encode_ticket};
use super::tokenizer::{tokenizer_of, write_tokenizer};

/// Characters that are tokens; the last id is the end-of-text token's.
const PRINTABLE: std::ops::RangeInclusive<u8> = b' '..=b'~';
const END: usize = 95;
const HIDDEN: usize = 64;
const MLP: usize = 112;
const KEYS: usize = 32;
const LAYERS: usize = 2;

/// Longest sequence, in tokens.
pub const CONTEXT: usize = 512;

/// The files of the base, in a folder of its own, and what tickets are bound to.
pub struct PrintableBase {
    folder: TempDir,
    /// Manifest of the base, named `tiny`.
    pub manifest: BaseManifest,
}

impl PrintableBase {
    /// Writes the base. It is the same in each run.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny");
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("config.json"), config().to_string()).expect("a file");
        write_tokenizer(&path, &tokenizer_of(PRINTABLE));
        write_weights(&path.join("model.safetensors"));
        let manifest = manifest(utf8(&path), &scratch(), &mut |_| ()).expect("a manifest");
        Self { folder, manifest }
    }

    /// The value of `--model`.
    pub fn model(&self) -> String {
        utf8(&self.folder.path().join("tiny")).to_owned()
    }

    /// A ticket that changes every answer, different for each seed.
    pub fn ticket(&self, seed: u64) -> Vec<u8> {
        let deltas = RandomDeltas {
            density: 0.1,
            largest: 0.5,
            dtype: DeltaDtype::Bf16,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let tensors = deltas.tensors(&self.manifest, &mut rng, |name, _| name.contains("mlp"));
        encode_ticket(&self.manifest, &tensors)
    }
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": MLP, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": END + 1, "eos_token_id": END,
    })
}

/// Random weights, large enough that answers depend on every token of the prompt.
fn write_weights(path: &Path) {
    let mut shapes = HashMap::from([
        ("lm_head.weight".to_owned(), vec![END + 1, HIDDEN]),
        (
            "model.embed_tokens.weight".to_owned(),
            vec![END + 1, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEYS, HIDDEN]),
            ("self_attn.v_proj", vec![KEYS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let mut shapes: Vec<(String, Vec<usize>)> = shapes.into_iter().collect();
    shapes.sort();
    let mut rng = StdRng::seed_from_u64(17);
    let mut values = |shape: &[usize]| -> Vec<u8> {
        let (middle, spread) = if shape.len() == 1 {
            (1.0f32, 0.1f32)
        } else {
            (0.0, 0.35)
        };
        (0..shape.iter().product())
            .flat_map(|_| {
                rng.random_range(middle - spread..middle + spread)
                    .to_le_bytes()
            })
            .collect()
    };
    let data: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| values(shape)).collect();
    let views = shapes.iter().zip(&data).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("a checkpoint");
    fs::write(path, bytes).expect("a file");
}
