//! Bases: their weights, configuration and tokenizer.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tombola::model::{Base, CacheDir, Checkpoint, Files, LoadOptions};
use tombola::text::Text;

use super::outcome;
use crate::harness::{Target, fuzz};

/// Configuration of the bases in the corpus.
const CONFIG: &str = r#"{
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "vocab_size": 40,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": true
}"#;

const GGUF_WORDS: &[&[u8]] = &[
    b"general.alignment",
    b"llama",
    b"qwen2",
    b"mistral",
    b"gpt2",
    b"llama.block_count",
    b"llama.context_length",
    b"llama.rope.scaling.type",
    b"linear",
    b"blk.0.attn_q.weight",
    b"output.weight",
    b"rope_freqs.weight",
    b"tokenizer.ggml.pre",
    b"tokenizer.ggml.scores",
    b"\x09\0\0\0\x08\0\0\0\x04\0\0\0\0\0\0\0",
    b"\x09\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0",
    b"\x08\0\0\0",
    b"\x04\0\0\0",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\xff",
    b"<0x41>",
    b"\xe2\x96\x81",
];

/// A folder in memory, where there is one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return TempDir::new_in(memory).unwrap();
    }
    TempDir::new().unwrap()
}

/// Loads a base as the server does, and reads its tokenizer if it is in the file.
fn load(files: &Files, cache: &CacheDir) -> String {
    let checkpoint = match Checkpoint::open(files) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return outcome(Err::<(), _>(error)),
    };
    let options = LoadOptions {
        dtype: "f32".parse().unwrap(),
        device: "cpu".parse().unwrap(),
        max_positions: Some(1),
        keep_quantized: false,
    };
    let base = Base::load("fuzz", &checkpoint, &options, cache, &mut |_| ());
    let text = checkpoint.gguf_content().map(Text::from_gguf);
    format!(
        "{} {}",
        outcome(base),
        text.map(use_text).unwrap_or_default()
    )
}

/// Encodes and decodes with a tokenizer.
fn use_text(text: Result<Text, tombola::text::TextError>) -> String {
    let text = match text {
        Ok(text) => text,
        Err(error) => return outcome(Err::<(), _>(error)),
    };
    let encoded = text.encode("ab  abc é 🤗<s>▁\n", true).and_then(|ids| {
        for &id in &ids {
            text.token_text(id);
        }
        text.decode(&ids, true)
    });
    outcome(encoded)
}

fn gguf(name: &str) {
    let folder = folder();
    let path = folder.path().join("base.gguf");
    let cache = CacheDir::at(folder.path().join("cache"));
    let mut run = |input: &[u8]| {
        fs::write(&path, input).unwrap();
        load(&Files::Gguf(path.clone()), &cache)
    };
    fuzz(Target {
        name,
        dictionary: GGUF_WORDS,
        memory: 128 << 20,
        memory_per_byte: 2000,
        run: &mut run,
    });
}

#[test]
fn gguf_headers() {
    gguf("gguf");
}

#[test]
fn sentencepiece_models() {
    gguf("sentencepiece");
}

#[test]
fn safetensors_headers() {
    let folder = folder();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let path = folder.path().join("model.safetensors");
    let cache = CacheDir::at(folder.path().join("cache"));
    let mut run = |input: &[u8]| {
        fs::write(&path, input).unwrap();
        load(&Files::Folder(folder.path().to_owned()), &cache)
    };
    fuzz(Target {
        name: "safetensors",
        dictionary: &[
            b"{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]}",
            b"\"shape\":[]",
            b"\"shape\":[4294967296,4294967296]",
            b"\"F8_E4M3\"",
            b"\"BF16\"",
            b"\"I64\"",
            b"__metadata__",
            b"model.norm.weight",
            b"[0,0]",
            b"[",
            b"1e99",
        ],
        memory: 64 << 20,
        memory_per_byte: 500,
        run: &mut run,
    });
}
