//! Checkpoints: the parameters of a base on disk, in any format, under their checkpoint names.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::config::ModelConfig;
use super::error::{ModelError, first_line};
use super::gguf::Gguf;
use super::read;
use super::synthetic::Synthetic;
use crate::kernels::quantized::{self, QuantizedWeight};
use crate::ticket::Digest;

/// Local files of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// An open checkpoint with its configuration.
pub struct Checkpoint {
    config: ModelConfig,
    /// The folder or file that was opened.
    path: PathBuf,
    /// The files that hold the parameters.
    files: Vec<PathBuf>,
    format: Format,
}

enum Format {
    Safetensors(MmapedSafetensors),
    Gguf(Gguf),
    Synthetic(Synthetic),
}

impl Checkpoint {
    /// A checkpoint of synthetic weights for a configuration.
    pub fn synthetic(config: ModelConfig) -> Self {
        Self {
            config,
            path: PathBuf::from("synthetic"),
            files: Vec::new(),
            format: Format::Synthetic(Synthetic::new()),
        }
    }

    /// The fingerprint of synthetic weights; `None` for a checkpoint on disk.
    pub(super) fn synthetic_fingerprint(&self) -> Option<Digest> {
        let synthetic = matches!(self.format, Format::Synthetic(_));
        synthetic.then(|| Synthetic::fingerprint(&self.config))
    }

    /// Opens the files. Parameters are read on [`Self::load`].
    ///
    /// # Errors
    /// A file is missing or invalid, or the architecture is not supported.
    pub fn open(files: &Files) -> Result<Self, ModelError> {
        match files {
            Files::Folder(folder) => {
                let config = ModelConfig::from_folder(folder)?;
                let files = shards(folder)?;
                files.iter().try_for_each(|file| check_header(file))?;
                // SAFETY: it would be undefined behaviour if another process changed the files
                // while they are mapped. We assume, as every safetensors loader does, that the
                // files of a base do not change. Tickets, which users upload, are read instead.
                let mapped = unsafe { MmapedSafetensors::multi(&files) };
                let map = mapped.map_err(|e| {
                    let reason = format!("cannot open its safetensors files: {}", first_line(&e));
                    ModelError::invalid(folder, reason)
                })?;
                let format = Format::Safetensors(map);
                Ok(Self {
                    config,
                    path: folder.clone(),
                    files,
                    format,
                })
            }
            Files::Gguf(path) => {
                let gguf = Gguf::open(path)?;
                Ok(Self {
                    config: gguf.config()?,
                    path: path.clone(),
                    files: vec![path.clone()],
                    format: Format::Gguf(gguf),
                })
            }
        }
    }

    /// The configuration of the decoder.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header of a GGUF file, which holds the tokenizer and the chat template; `None` for other
    /// checkpoints.
    pub fn gguf_content(&self) -> Option<&Content> {
        match &self.format {
            Format::Safetensors(_) | Format::Synthetic(_) => None,
            Format::Gguf(gguf) => Some(gguf.content()),
        }
    }

    /// The files that hold the parameters.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reads a parameter onto the CPU, in f32 (synthetic ones in bf16).
    ///
    /// # Errors
    /// The parameter is missing, has another shape, or cannot be read.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        if let Some((_, info)) = self.stored(name) {
            self.check_shape(name, info.shape.dims(), shape)?;
        }
        let tensor = match &self.format {
            Format::Safetensors(map) if let Ok(view) = map.get(name) => {
                self.check_shape(name, view.shape(), shape)?;
                let tensor = map
                    .load(name, &Device::Cpu)
                    .and_then(|tensor| tensor.to_dtype(DType::F32));
                Some(tensor.map_err(|e| {
                    ModelError::invalid(&self.path, format!("{name}: {}", first_line(&e)))
                })?)
            }
            Format::Safetensors(_) => None,
            Format::Gguf(gguf) => gguf.load(name, &self.config)?,
            Format::Synthetic(synthetic) => Some(synthetic.parameter(name, shape)?),
        };
        let tensor = tensor.ok_or_else(|| self.missing(name))?;
        self.check_shape(name, tensor.dims(), shape)?;
        Ok(tensor)
    }

    /// Reads a matrix of a GGUF file in its stored, quantised form.
    ///
    /// # Errors
    /// The matrix is missing, has another shape, cannot be read, or has no kernel.
    pub(super) fn load_quantized(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<QuantizedWeight, ModelError> {
        let Some((gguf, info)) = self.stored(name) else {
            return Err(self.missing(name));
        };
        self.check_shape(name, info.shape.dims(), shape)?;
        gguf.load_quantized(name, &self.config)
    }

    /// Whether a parameter is stored quantised.
    pub(super) fn is_quantized(&self, name: &str) -> bool {
        self.kind(name).is_some_and(quantized::is_quantized)
    }

    fn kind(&self, name: &str) -> Option<GgmlDType> {
        Some(self.stored(name)?.1.ggml_dtype)
    }

    /// A tensor of a GGUF file by its checkpoint name.
    fn stored(&self, name: &str) -> Option<(&Gguf, &TensorInfo)> {
        match &self.format {
            Format::Safetensors(_) | Format::Synthetic(_) => None,
            Format::Gguf(gguf) => Some((gguf, gguf.info(name)?)),
        }
    }

    /// Checks that the matrices `names` can be kept quantised.
    ///
    /// # Errors
    /// The base is not a GGUF file, none of the matrices is quantised, or one is of a kind that has
    /// no kernel.
    pub(super) fn check_keep_quantized<'a>(
        &self,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<(), ModelError> {
        let refuse = |reason| {
            let path = self.path.clone();
            Err(ModelError::KeepQuantized { path, reason })
        };
        if let Format::Safetensors(_) = &self.format {
            let reason = "it is a safetensors folder; only GGUF files hold quantised weights";
            return refuse(reason.to_owned());
        }
        let kinds: Vec<_> = names
            .filter_map(|name| Some((name, self.kind(name)?)))
            .filter(|(_, kind)| quantized::is_quantized(*kind))
            .collect();
        if kinds.is_empty() {
            return refuse("none of its weights is quantised; leave the flag out".to_owned());
        }
        match kinds.iter().find(|(_, k)| !quantized::is_supported(*k)) {
            Some((name, kind)) => refuse(format!(
                "{name} is {kind:?}; there are kernels only for {}",
                quantized::SUPPORTED
            )),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> ModelError {
        let (path, name) = (self.path.clone(), name.to_owned());
        ModelError::MissingParameter { path, name }
    }

    fn check_shape(
        &self,
        name: &str,
        found: &[usize],
        expected: &[usize],
    ) -> Result<(), ModelError> {
        if found == expected {
            return Ok(());
        }
        Err(ModelError::ParameterShape {
            path: self.path.clone(),
            name: name.to_owned(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        })
    }
}

/// Maximum size of the index of a folder's safetensors files.
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// Maximum size of the header of a base's safetensors file: room for about 60,000 tensors.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Checks the length of a safetensors file's header before it is parsed.
fn check_header(path: &Path) -> Result<(), ModelError> {
    let file_bytes = read::regular(path)?;
    let mut length = [0; 8];
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let fault = match file.read_exact(&mut length) {
        Err(_) if file_bytes < 8 => {
            format!("has {file_bytes} bytes: too short for a safetensors file")
        }
        Err(error) => return Err(ModelError::io(path)(error)),
        Ok(()) => match u64::from_le_bytes(length) {
            header if header > MAX_HEADER_BYTES => {
                format!("its header claims {header} bytes; at most {MAX_HEADER_BYTES} are read")
            }
            header if header > file_bytes - 8 => {
                format!("its header claims {header} bytes, but the file has {file_bytes}")
            }
            _ => return Ok(()),
        },
    };
    Err(ModelError::invalid(path, fault))
}

/// The file that maps parameters to shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Names of a folder's safetensors files: the shards in the index, or the single file.
pub(super) fn shard_names(folder: &Path) -> Result<Vec<String>, ModelError> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let text = read::text(&index, MAX_INDEX_BYTES)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| ModelError::invalid(&index, e))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(ModelError::invalid(&index, "weight_map is empty"));
    }
    if let Some(path) = names.iter().find(|name| name.contains(['/', '\\'])) {
        let reason = format!("weight_map names {path:?}, which is not a file beside it");
        return Err(ModelError::invalid(&index, reason));
    }
    Ok(names.into_iter().collect())
}

/// Paths of a folder's safetensors files, all of which exist.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let names = shard_names(folder)?;
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    match paths.iter().find(|path| !path.exists()) {
        Some(missing) => Err(ModelError::Missing {
            path: missing.clone(),
            expected: "model.safetensors, or model.safetensors.index.json and its shards",
        }),
        None => Ok(paths),
    }
}
