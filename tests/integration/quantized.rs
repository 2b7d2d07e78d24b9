//! Bases with weights kept quantised: bit for bit the dequantised base, in less memory, with
//! tickets overlaid.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tombola::engine::{EngineError, TicketMode, spawn};
use tombola::metrics::Metrics;
use tombola::model::{
    Base, Batch, Checkpoint, Dtype, Files, LoadOptions, LoadedTicket, ModelError, TicketLayout,
};
use tombola::ticket::DeltaDtype;

use crate::support::bases::{dense, load_with, tiny_folder};
use crate::support::engine::config;
use crate::support::environment::scratch;
use crate::support::player::{Player, logprobs};
use crate::support::tickets::{RandomDeltas, bind_ticket};

const HIDDEN: usize = 256;
const INNER: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCAB: usize = 300;
const LAYERS: usize = 2;

/// The storage type of a matrix, by the name of the tensor in the file.
type Kinds = fn(&str) -> GgmlDType;

/// The GGUF file of a random model.
struct Model {
    path: PathBuf,
    _folder: TempDir,
}

impl Model {
    /// Writes a model whose matrices are stored as `kinds` says.
    fn new(architecture: &str, tied: bool, kinds: Kinds) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let key = |name: &str| format!("{architecture}.{name}");
        let size = |size: usize| Value::U32(size as u32);
        let metadata = [
            (
                "general.architecture".to_owned(),
                Value::String(architecture.to_owned()),
            ),
            (key("block_count"), size(LAYERS)),
            (key("context_length"), size(64)),
            (key("embedding_length"), size(HIDDEN)),
            (key("feed_forward_length"), size(INNER)),
            (key("attention.head_count"), size(HEADS)),
            (key("attention.head_count_kv"), size(KV_HEADS)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
        ];
        let tensors: Vec<(String, QTensor)> = shapes(architecture, tied)
            .into_iter()
            .map(|(name, shape)| {
                let centre = if name.contains("norm") { 1.0 } else { 0.0 };
                let values = Tensor::randn(centre, 0.1f32, shape.as_slice(), &Device::Cpu).unwrap();
                let kind = if shape.len() == 2 {
                    kinds(&name)
                } else {
                    GgmlDType::F32
                };
                let tensor = QTensor::quantize(&values, kind).unwrap();
                (name, tensor)
            })
            .collect();
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut file = fs::File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        Self {
            path,
            _folder: folder,
        }
    }

    fn load(&self, keep_quantized: bool) -> Base {
        load_with(&self.files(), &options(keep_quantized))
    }

    fn files(&self) -> Files {
        Files::Gguf(self.path.clone())
    }
}

fn options(keep_quantized: bool) -> LoadOptions {
    LoadOptions {
        keep_quantized,
        ..dense(Dtype::F32)
    }
}

/// The names and shapes of all tensors in the file of a model.
fn shapes(architecture: &str, tied: bool) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("token_embd.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("output_norm.weight".to_owned(), vec![HIDDEN]),
    ];
    if !tied {
        all.push(("output.weight".to_owned(), vec![VOCAB, HIDDEN]));
    }
    let dim = HIDDEN / HEADS;
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            all.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        };
        for (name, out, inner) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", KV_HEADS * dim, HIDDEN),
            ("attn_v", KV_HEADS * dim, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ] {
            add(&format!("{name}.weight"), &[out, inner]);
            let reads_input = ["attn_q", "attn_k", "attn_v"].contains(&name);
            if architecture == "qwen2" && reads_input {
                add(&format!("{name}.bias"), &[out]);
            }
        }
        add("attn_norm.weight", &[HIDDEN]);
        add("ffn_norm.weight", &[HIDDEN]);
        if architecture == "qwen3" {
            add("attn_q_norm.weight", &[dim]);
            add("attn_k_norm.weight", &[dim]);
        }
    }
    all
}

/// A mix as llama.cpp writes it: some tensors finer than the rest, also within one fused weight.
fn mixed(name: &str) -> GgmlDType {
    let holds = |part: &str| name.contains(part);
    if holds("token_embd") {
        GgmlDType::Q8_0
    } else if holds("attn_v") || holds("ffn_down") {
        GgmlDType::Q6K
    } else if holds("attn_k") {
        GgmlDType::F16
    } else if holds("ffn_up") {
        GgmlDType::Q5K
    } else if holds("attn_output") {
        GgmlDType::F32
    } else {
        GgmlDType::Q4K
    }
}

const KINDS: [Kinds; 6] = [
    |_| GgmlDType::Q4_0,
    |_| GgmlDType::Q4_1,
    |_| GgmlDType::Q5_1,
    |_| GgmlDType::Q8_0,
    |_| GgmlDType::Q4K,
    mixed,
];

const PROMPT: [u32; 9] = [5, 6, 7, 299, 0, 17, 200, 31, 8];

#[test]
fn a_quantised_base_is_the_dequantised_one_bit_for_bit() {
    for (i, kinds) in KINDS.into_iter().enumerate() {
        let architecture = ["llama", "qwen2", "qwen3"][i % 3];
        let model = Model::new(architecture, i % 2 == 0, kinds);
        let (kept, dense) = (model.load(true), model.load(false));
        assert_eq!(kept.manifest.fingerprint, dense.manifest.fingerprint);
        assert_eq!(kept.loaded_digest, dense.loaded_digest, "{architecture}");
        let run = |base| {
            let mut player = Player::new(base, 2, 32);
            let prompt = player.step(&[(0, &PROMPT), (1, &PROMPT[..2])]);
            (prompt, player.step(&[(0, &[9]), (1, &[3])]))
        };
        assert!(run(&kept) == run(&dense), "{architecture} {i}");
        // The file holds little more than the weights.
        let file = fs::metadata(&model.path).unwrap().len() as usize;
        let bytes = kept.resident.bytes();
        assert!(bytes <= file && bytes > file * 9 / 10, "{bytes} {file}");
        assert!(bytes < dense.resident.bytes() / 2);
    }
}

fn ticket(base: &Base, seed: u64) -> Arc<LoadedTicket> {
    let deltas = RandomDeltas {
        density: 0.02,
        largest: 0.2,
        dtype: if seed.is_multiple_of(2) {
            DeltaDtype::Bf16
        } else {
            DeltaDtype::F32
        },
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let tensors = deltas.tensors(&base.manifest, &mut rng, |_, _| true);
    bind_ticket(base, &tensors)
}

fn overlay(base: &Base, seed: u64) -> Arc<TicketLayout> {
    Arc::new(base.lay_out(&ticket(base, seed)).unwrap())
}

#[test]
fn tickets_on_a_quantised_base_equal_those_on_the_dense_one_alone_and_in_a_batch() {
    let model = Model::new("llama", true, mixed);
    let (kept, dense) = (model.load(true), model.load(false));
    let tickets: Vec<_> = (0..3).map(|seed| overlay(&kept, seed)).collect();
    let over = |i: usize| tickets.get(i);
    // The last sequence has no ticket.
    let mut batch = Batch::default();
    for sequence in 0..4 {
        batch.push(&PROMPT[..9 - sequence], 0, &[sequence as u32], true);
        if let Some(ticket) = over(sequence) {
            batch.overlay(ticket);
        }
    }
    let cache = kept.kv_cache(4).unwrap();
    let together = kept.decoder.forward(&batch, &cache).unwrap().unwrap();
    let together = logprobs(&together);
    for (sequence, together) in together.iter().enumerate() {
        let alone = |base| {
            let mut player = Player::new(base, 1, 16).under(over(sequence));
            player.step(&[(0, &PROMPT[..9 - sequence])]).remove(0)
        };
        assert!(*together == alone(&kept), "sequence {sequence}");
        assert!(*together == alone(&dense), "sequence {sequence}");
    }
    assert_ne!(together[0], together[1]);
    assert_eq!(kept.resident.digest().unwrap(), kept.loaded_digest);
}

#[test]
fn nothing_is_written_into_a_quantised_base() {
    let model = Model::new("llama", true, mixed);
    let mut kept = model.load(true);
    assert!(!kept.resident.can_apply() && model.load(false).resident.can_apply());
    let ticket = ticket(&kept, 1);
    let error = kept.resident.swap(Some(&ticket), 1.0).unwrap_err();
    assert!(matches!(error, ModelError::Quantized(_)), "{error}");
    assert!(error.to_string().contains("overlaid"), "{error}");
    assert_eq!(kept.resident.applied(), None);
    assert_eq!(kept.resident.digest().unwrap(), kept.loaded_digest);

    let error = spawn(kept, &config(), Arc::new(Metrics::new(64).unwrap())).err();
    assert_eq!(config().ticket_mode, TicketMode::Apply);
    assert!(matches!(error, Some(EngineError::Quantized)));

    let error = model.load(true).into_trainable().err().unwrap();
    assert!(matches!(error, ModelError::Quantized(_)), "{error}");
}

/// The error of a base that cannot stay quantised.
fn error_of(files: &Files) -> String {
    let loaded = Checkpoint::open(files).and_then(|checkpoint| {
        Base::load("base", &checkpoint, &options(true), &scratch(), &mut |_| {
            panic!("the base was read first")
        })
    });
    let error = loaded.err().expect("a base that does not load").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("kept quantised"), "{error}");
    error
}

#[test]
fn files_that_cannot_stay_quantised_are_refused_before_any_work() {
    let error = error_of(&Files::Folder(tiny_folder("qwen2")));
    assert!(error.contains("safetensors folder"), "{error}");
    let dense = Model::new("llama", true, |_| GgmlDType::F16);
    let error = error_of(&dense.files());
    assert!(
        error.contains("none of its weights is quantised"),
        "{error}"
    );
    let odd = Model::new("llama", true, |name| match name {
        "blk.1.ffn_up.weight" => GgmlDType::Q2K,
        _ => GgmlDType::Q4K,
    });
    let error = error_of(&odd.files());
    let name = "model.layers.1.mlp.up_proj.weight is Q2K";
    assert!(error.contains(name) && error.contains("Q4_K"), "{error}");
}
