//! Loading bases: folders, shards, GGUF files, and the errors of malformed ones.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use tombola::model::{Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, manifest};

use crate::support::bases::{
    copy_tiny, default_gguf_path, edit_config, load, load_tiny, read_tensors, tiny_folder,
};
use crate::support::environment::{scratch, utf8};
use crate::support::player::Player;

/// The error of a base that does not load, which has to be one line.
fn error_of(files: Files) -> String {
    let options = LoadOptions {
        dtype: Dtype::F32,
        device: DeviceSpec::Cpu,
        max_positions: None,
        keep_quantized: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheDir::at(folder.path().to_owned());
    let loaded = Checkpoint::open(&files)
        .and_then(|checkpoint| Base::load("base", &checkpoint, &options, &cache, &mut |_| ()));
    let error = loaded.err().expect("a base that does not load").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn shards_and_the_old_rope_field_names_are_the_same_base() {
    let folder = copy_tiny("llama3-rope");
    let whole = load_tiny("llama3-rope", Dtype::F32);
    // Two files with an index, and the configuration as older tools wrote it.
    let (mut first, mut second, mut map) = (HashMap::new(), HashMap::new(), serde_json::Map::new());
    for (name, tensor) in read_tensors(folder.path()) {
        let (shard, file) = if name.contains("layers.1") {
            (&mut second, "model-00002-of-00002.safetensors")
        } else {
            (&mut first, "model-00001-of-00002.safetensors")
        };
        map.insert(name.clone(), file.into());
        shard.insert(name, tensor);
    }
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let save = |tensors, file| candle_core::safetensors::save(tensors, folder.path().join(file));
    save(&first, "model-00001-of-00002.safetensors").unwrap();
    save(&second, "model-00002-of-00002.safetensors").unwrap();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    edit_config(folder.path(), |config| {
        let rope = config
            .as_object_mut()
            .unwrap()
            .remove("rope_parameters")
            .unwrap();
        config["rope_theta"] = rope["rope_theta"].clone();
        config["rope_scaling"] = rope;
    });
    let sharded = load(&Files::Folder(folder.path().to_owned()), Dtype::F32);
    assert_eq!(sharded.manifest.fingerprint, whole.manifest.fingerprint);
    assert_eq!(sharded.loaded_digest, whole.loaded_digest);
    let run = |base| Player::new(base, 1, 16).step(&[(0, &[5, 6, 7])]);
    assert_eq!(run(&sharded), run(&whole));
}

/// llama.cpp's order of query and key rows.
fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, inner) = tensor.dims2().unwrap();
    let halves = tensor.reshape((heads, 2, rows / heads / 2, inner)).unwrap();
    halves
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape((rows, inner))
        .unwrap()
}

/// Writes a tiny model as the GGUF file that llama.cpp's converter would write.
fn to_gguf(name: &str, architecture: &str, to: &Path) {
    let folder = tiny_folder(name);
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let size = |key: &str| Value::U32(config[key].as_u64().unwrap() as u32);
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    let key = |name: &str| format!("{architecture}.{name}");
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            Value::String(architecture.to_owned()),
        ),
        (key("block_count"), size("num_hidden_layers")),
        (key("context_length"), size("max_position_embeddings")),
        (key("embedding_length"), size("hidden_size")),
        (key("feed_forward_length"), size("intermediate_size")),
        (key("attention.head_count"), size("num_attention_heads")),
        (key("attention.head_count_kv"), size("num_key_value_heads")),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
        (key("rope.freq_base"), Value::F32(10_000.0)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
    ];
    if let Some(dim) = config["head_dim"].as_u64() {
        metadata.push((key("attention.key_length"), Value::U32(dim as u32)));
    }
    let mut stored = Vec::new();
    for (name, tensor) in read_tensors(&folder) {
        let ordered = if architecture == "llama" && name.contains("q_proj") {
            permute(&tensor, heads("num_attention_heads"))
        } else if architecture == "llama" && name.contains("k_proj") {
            permute(&tensor, heads("num_key_value_heads"))
        } else {
            tensor
        };
        let tensor = QTensor::quantize(&ordered, GgmlDType::F32).unwrap();
        stored.push((gguf_name(&name), tensor));
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let stored: Vec<(&str, &QTensor)> = stored.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut fs::File::create(to).unwrap(), &metadata, &stored).unwrap();
}

/// The GGUF name of a checkpoint's parameter.
fn gguf_name(name: &str) -> String {
    let renames = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    renames
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn a_gguf_file_is_the_same_base_as_its_source_folder() {
    for (name, architecture) in [
        ("llama-untied", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        to_gguf(name, architecture, &path);
        let gguf = load(&Files::Gguf(path), Dtype::F32);
        let whole = load_tiny(name, Dtype::F32);
        assert_eq!(
            gguf.manifest.fingerprint, whole.manifest.fingerprint,
            "{name}"
        );
        let run = |base| Player::new(base, 1, 16).step(&[(0, &[5, 6, 7])]);
        assert_eq!(run(&gguf), run(&whole), "{name}");
    }
}

#[test]
fn the_fingerprint_is_the_same_from_the_cache_and_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let empty = CacheDir::at(folder.path().to_owned());
    let model = tiny_folder("qwen2");
    let path = utf8(&model);
    let mut computed = 0;
    let cold = manifest(path, &empty, &mut |_| computed += 1).unwrap();
    assert!(computed > 0);
    let warm = manifest(path, &empty, &mut |_| panic!("the cache was not used")).unwrap();
    assert_eq!(cold.fingerprint, warm.fingerprint);
    assert_eq!(
        manifest(path, &scratch(), &mut |_| ()).unwrap().fingerprint,
        cold.fingerprint
    );
    // Computed from the definition with Python's hashlib. Pinned: tickets name it.
    let pinned = "fc1e411add8f9da1df26fe2738d008c367285adba05b555562b9f288a626f812";
    assert_eq!(cold.fingerprint.to_string(), pinned);
}

/// Another configuration of the same weights is another base, despite a cached fingerprint.
#[test]
fn the_cached_fingerprint_depends_on_the_configuration_too() {
    let folder = copy_tiny("qwen2");
    let cache_folder = tempfile::tempdir().unwrap();
    let cache = CacheDir::at(cache_folder.path().to_owned());
    let path = folder.path().to_str().unwrap();
    let whole = manifest(path, &cache, &mut |_| ()).unwrap();
    edit_config(folder.path(), |config| {
        config["num_hidden_layers"] = 2.into();
    });
    let shorter = manifest(path, &cache, &mut |_| ()).unwrap();
    assert_ne!(whole.fingerprint, shorter.fingerprint);
    assert!(shorter.parameters.len() < whole.parameters.len());
}

#[test]
fn bf16_keeps_norms_and_rounds_the_rest() {
    let exact = load_tiny("llama-untied", Dtype::F32);
    let rounded = load_tiny("llama-untied", Dtype::Bf16);
    assert_eq!(exact.manifest.fingerprint, rounded.manifest.fingerprint);
    let (exact, rounded) = (
        exact.resident.digests().unwrap(),
        rounded.resident.digests().unwrap(),
    );
    assert_eq!(exact["model.norm.weight"], rounded["model.norm.weight"]);
    let weight = "model.layers.0.mlp.up_proj.weight";
    assert_ne!(exact[weight], rounded[weight]);
}

#[test]
fn errors_are_one_line_that_names_the_file() {
    let empty = tempfile::tempdir().unwrap();
    let error = error_of(Files::Folder(empty.path().to_owned()));
    assert!(error.contains("config.json is missing"), "{error}");

    let folder = copy_tiny("qwen2");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = error_of(Files::Folder(folder.path().to_owned()));
    assert!(error.contains("model.safetensors is missing"), "{error}");

    let folder = copy_tiny("qwen2");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = error_of(Files::Folder(folder.path().to_owned()));
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");

    let folder = copy_tiny("qwen2");
    edit_config(folder.path(), |config| config["hidden_size"] = 128.into());
    let error = error_of(Files::Folder(folder.path().to_owned()));
    assert!(
        error.contains("has shape") && error.contains(folder.path().to_str().unwrap()),
        "{error}"
    );

    let folder = copy_tiny("qwen2");
    edit_config(folder.path(), |config| {
        config["num_hidden_layers"] = 4.into();
    });
    let error = error_of(Files::Folder(folder.path().to_owned()));
    assert!(
        error.contains("model.layers.3.") && error.contains("missing"),
        "{error}"
    );

    let file = empty.path().join("not.gguf");
    fs::write(&file, b"GGUF but not really").unwrap();
    let error = error_of(Files::Gguf(file));
    assert!(
        error.contains("not.gguf") && error.contains("GGUF"),
        "{error}"
    );
}

#[test]
fn a_truncated_gguf_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let bytes = fs::read(default_gguf_path()).unwrap();
    fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let error = error_of(Files::Gguf(path));
    assert!(
        error.contains("cut.gguf") && error.contains("outside the file"),
        "{error}"
    );
}

#[test]
fn dtypes_and_devices_are_parsed() {
    assert_eq!("bf16".parse(), Ok(Dtype::Bf16));
    assert_eq!("cpu".parse(), Ok(DeviceSpec::Cpu));
    assert!("f8".parse::<Dtype>().unwrap_err().contains("bf16"));
    assert!("gpu".parse::<DeviceSpec>().unwrap_err().contains("cuda:N"));
    let gpu = "cuda:1".parse::<DeviceSpec>();
    if cfg!(feature = "cuda") {
        assert_eq!(gpu, Ok(DeviceSpec::Cuda(1)));
        for bad in ["cuda:", "cuda:x", "cuda1"] {
            assert!(bad.parse::<DeviceSpec>().unwrap_err().contains("cuda:N"));
        }
    } else {
        assert!(gpu.unwrap_err().contains("--features cuda"));
    }
    assert_eq!(Dtype::Bf16.bytes(), DType::BF16.size_in_bytes());
}
