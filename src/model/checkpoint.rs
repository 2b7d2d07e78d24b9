//! A base's parameters on disk, whatever the format, under their checkpoint names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::config::ModelConfig;
use super::error::ModelError;
use super::gguf::Gguf;
use super::source::Files;

/// An open checkpoint with its configuration.
pub struct Checkpoint {
    config: ModelConfig,
    /// The files that the parameters are in.
    files: Vec<PathBuf>,
    format: Format,
}

enum Format {
    Safetensors(MmapedSafetensors),
    Gguf(Gguf),
}

impl Checkpoint {
    /// Opens the files; no parameter is read yet.
    pub fn open(files: &Files) -> Result<Self, ModelError> {
        match files {
            Files::Folder(folder) => {
                let config = ModelConfig::from_folder(folder)?;
                let files = shards(folder)?;
                for file in &files {
                    fs::metadata(file).map_err(ModelError::io(file))?;
                }
                // SAFETY: the map is undefined behaviour if another process changes the files
                // while they are read; a base's files are taken to be at rest, as every loader of
                // safetensors takes them. Tickets, which users upload, are read instead.
                let map = unsafe { MmapedSafetensors::multi(&files) };
                let map = map.map_err(|e| ModelError::invalid(folder, e))?;
                let format = Format::Safetensors(map);
                Ok(Self {
                    config,
                    files,
                    format,
                })
            }
            Files::Gguf(path) => {
                let gguf = Gguf::open(path)?;
                Ok(Self {
                    config: gguf.config()?,
                    files: vec![path.clone()],
                    format: Format::Gguf(gguf),
                })
            }
        }
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The files that the parameters are in.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reads one parameter, as f32 on the CPU.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let path = || self.files[0].clone();
        let tensor = match &self.format {
            Format::Safetensors(map) if map.get(name).is_ok() => {
                Some(map.load(name, &Device::Cpu)?.to_dtype(DType::F32)?)
            }
            Format::Safetensors(_) => None,
            Format::Gguf(gguf) => gguf.load(name, &self.config)?,
        };
        let Some(tensor) = tensor else {
            let (path, name) = (path(), name.to_owned());
            return Err(ModelError::MissingParameter { path, name });
        };
        if tensor.dims() != shape {
            return Err(ModelError::ParameterShape {
                path: path(),
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
            });
        }
        Ok(tensor)
    }
}

/// The safetensors files of a folder: those of the index, or the one file.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        let path = folder.join("model.safetensors");
        if !path.exists() {
            let expected = "model.safetensors, or model.safetensors.index.json and its shards";
            return Err(ModelError::Missing { path, expected });
        }
        return Ok(vec![path]);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let text = fs::read_to_string(&index).map_err(ModelError::io(&index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| ModelError::invalid(&index, e))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(ModelError::invalid(&index, "weight_map names no file"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
