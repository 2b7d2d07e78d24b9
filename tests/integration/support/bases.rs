//! Bases: the tiny random models of `tests/golden/tiny`, edited copies of them, and the default
//! base.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use tempfile::TempDir;
use tombola::model::{Base, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, default_gguf};
use tombola::text::Text;

use super::environment::{cache, device, golden, scratch};

/// The tiny models, one per decoder family.
pub const TINY: [&str; 5] = [LLAMA, "llama3-rope", "mistral-window", "qwen2", "qwen3"];

/// The tiny model for tests that need a base of any family.
pub const LLAMA: &str = "llama-untied";

/// The folder of a tiny model.
pub fn tiny_folder(name: &str) -> PathBuf {
    golden("tiny").join(name)
}

/// A tiny model as a base.
pub fn load_tiny(name: &str, dtype: Dtype) -> Base {
    load(&Files::Folder(tiny_folder(name)), dtype)
}

/// A copy of a tiny model's folder, for a test to edit.
pub fn copy_tiny(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(tiny_folder(name).join(file), copy.path().join(file)).unwrap();
    }
    copy
}

/// The tensors in a model's folder.
pub fn read_tensors(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
}

/// Replaces the tensors in a model's folder.
pub fn write_tensors(folder: &Path, tensors: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(tensors, folder.join("model.safetensors")).unwrap();
}

/// Edits the configuration in a model's folder.
pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// The default base's GGUF file, fetched on first use.
pub fn default_gguf_path() -> PathBuf {
    static PATH: LazyLock<PathBuf> =
        LazyLock::new(|| default_gguf(&cache(), &mut |_| ()).expect("the default base"));
    PATH.clone()
}

/// The default base.
pub fn load_default(dtype: Dtype) -> Base {
    load(&Files::Gguf(default_gguf_path()), dtype)
}

/// The default base, with weights quantised as in its file.
pub fn load_default_quantized() -> Base {
    let options = LoadOptions {
        keep_quantized: true,
        device: DeviceSpec::Cpu,
        ..dense(Dtype::F32)
    };
    load_with(&Files::Gguf(default_gguf_path()), &options)
}

/// The default base's tokenizer and chat template.
pub fn default_text() -> Text {
    let file = File::open(default_gguf_path()).expect("the default base's GGUF");
    let content = Content::read(&mut BufReader::new(file)).expect("a GGUF header");
    Text::from_gguf(&content).expect("a tokenizer")
}

/// Options for a dense base with its full context.
pub fn dense(dtype: Dtype) -> LoadOptions {
    LoadOptions {
        dtype,
        device: device(),
        max_positions: None,
        keep_quantized: false,
    }
}

/// A dense base from any files.
pub fn load(files: &Files, dtype: Dtype) -> Base {
    load_with(files, &dense(dtype))
}

/// A base from any files, under any options.
pub fn load_with(files: &Files, options: &LoadOptions) -> Base {
    let checkpoint = Checkpoint::open(files).expect("a checkpoint");
    let base = Base::load("base", &checkpoint, options, &scratch(), &mut |_| ());
    base.expect("a base that loads")
}
