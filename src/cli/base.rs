//! Arguments and helpers that subcommands share: the base, its device and dtype, progress bars.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use candle_core::Tensor;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::engine::TicketMode;
use crate::model::{
    self, Base, CacheDir, Checkpoint, DEFAULT_MODEL, DeviceSpec, Dtype, LoadOptions, ModelError,
    Progress, Source, Stage,
};
use crate::text::{Text, TextError};
use crate::ticket::BaseManifest;
use crate::train::ModelOnDisk;

/// The base, and the folder that fetched files are kept in.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Base")]
pub struct BaseArgs {
    /// Base model: a folder in Hugging Face layout, a .gguf file, a hub id (owner/name), or the
    /// built-in smollm2-135m.
    #[arg(long, value_name = "BASE", env = "TOMBOLA_MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// The folder that fetched files are kept in.
#[derive(Clone, Debug, Args)]
pub struct CacheArgs {
    /// Folder for fetched models and other files that can be fetched or computed again
    /// [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "TOMBOLA_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
}

impl CacheArgs {
    /// The given folder, or the default.
    pub fn dir(&self) -> CacheDir {
        let given = self.cache_dir.clone();
        CacheDir::at(given.unwrap_or_else(CacheDir::default_path))
    }
}

impl BaseArgs {
    /// Manifest of the base, which is not made resident.
    pub fn manifest(&self) -> Result<BaseManifest, ModelError> {
        manifest(&self.model, &self.cache.dir())
    }

    /// Tokenizer and chat template of the base alone.
    pub fn text(&self) -> anyhow::Result<Text> {
        let checkpoint = open_checkpoint(&self.model, &self.cache.dir())?;
        load_text(&checkpoint).with_context(|| self.model.clone())
    }

    /// Fetches the base if it is not cached, and opens its files. A wrong path, configuration or
    /// tokenizer fails here, before minutes of loading.
    pub fn open(&self) -> anyhow::Result<OpenBase> {
        let cache = self.cache.dir();
        let source = Source::parse(&self.model)?;
        let checkpoint = open_checkpoint(&self.model, &cache)?;
        let text = load_text(&checkpoint).with_context(|| self.model.clone())?;
        Ok(OpenBase {
            name: source.name(),
            text: Arc::new(text),
            checkpoint,
            cache,
        })
    }
}

fn open_checkpoint(model: &str, cache: &CacheDir) -> anyhow::Result<Checkpoint> {
    let mut bars = Bars::default();
    let files = Source::parse(model)?.resolve(cache, &mut |progress| bars.show(progress))?;
    Ok(Checkpoint::open(&files)?)
}

/// The files of a model, given in any form that `--model` takes, and its manifest.
pub struct ModelFiles {
    pub manifest: BaseManifest,
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Fetches the model if it is not cached, fingerprints it and opens it.
    pub fn open(model: &str, cache: &CacheDir) -> anyhow::Result<Self> {
        Ok(Self {
            manifest: manifest(model, cache)?,
            checkpoint: open_checkpoint(model, cache)?,
        })
    }

    /// Borrows the model for an extraction.
    pub fn on_disk(&self) -> ModelOnDisk<'_> {
        ModelOnDisk {
            manifest: &self.manifest,
            checkpoint: &self.checkpoint,
        }
    }
}

fn manifest(model: &str, cache: &CacheDir) -> Result<BaseManifest, ModelError> {
    let mut bars = Bars::default();
    model::manifest(model, cache, &mut |progress| bars.show(progress))
}

/// Device, dtype and threads that a base is computed with.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Data type of the resident weights, and of keys and values: f32, bf16 or f16.
    #[arg(long, env = "TOMBOLA_DTYPE", default_value = "f32")]
    pub dtype: Dtype,
    /// Device that the base is resident on: cpu, cuda, cuda:N, or auto, which takes the first GPU
    /// if this build and the machine have one, and the CPU otherwise.
    #[arg(long, env = "TOMBOLA_DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Compute threads [default: all cores].
    #[arg(long, value_name = "N", env = "TOMBOLA_THREADS", value_parser = at_least_one)]
    threads: Option<usize>,
}

/// Whether the weights of a GGUF file stay quantised.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Compute")]
pub struct QuantizedArgs {
    /// Keep the weights of a GGUF file quantised, in about the size of the file, on the CPU only;
    /// --dtype then holds for all else, and tickets are overlaid.
    #[arg(long, env = "TOMBOLA_KEEP_QUANTIZED")]
    pub keep_quantized: bool,
}

impl QuantizedArgs {
    /// Ticket mode for this base: the given one, or the default. Overlay is the only mode of
    /// quantised weights, which cannot be written to.
    ///
    /// # Errors
    /// The given mode is apply, and the weights stay quantised.
    pub fn ticket_mode(self, given: Option<TicketMode>) -> anyhow::Result<TicketMode> {
        match given {
            Some(TicketMode::Apply) if self.keep_quantized => bail!(
                "--keep-quantized with --ticket-mode apply: quantised weights cannot be written \
                 to; leave --ticket-mode out, or use --ticket-mode overlay"
            ),
            None | Some(TicketMode::Auto) if self.keep_quantized => Ok(TicketMode::Overlay),
            given => Ok(given.unwrap_or_default()),
        }
    }
}

impl ComputeArgs {
    /// Load options of a dense base, for all positions that it was trained for.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            dtype: self.dtype,
            device: self.device,
            max_positions: None,
            keep_quantized: false,
        }
    }

    /// Number of compute threads.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores)
    }
}

/// A base whose files are open, but which is not resident yet.
pub struct OpenBase {
    /// Default name of the base in requests.
    pub name: String,
    pub text: Arc<Text>,
    checkpoint: Checkpoint,
    cache: CacheDir,
}

impl OpenBase {
    /// Number of positions that the model was trained for.
    pub fn trained_positions(&self) -> usize {
        self.checkpoint.config().max_position_embeddings
    }

    /// All end tokens that the model or the tokenizer names, sorted.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ids = self.checkpoint.config().eos_token_ids.clone();
        ids.extend(self.text.eos_token_ids());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The end token of trained and evaluated rows: the tokenizer's first, else the model's.
    ///
    /// # Errors
    /// Neither names one.
    pub fn end_token(&self) -> anyhow::Result<u32> {
        let of_model = &self.checkpoint.config().eos_token_ids;
        let mut tokens = self.text.eos_token_ids().iter().chain(of_model).copied();
        tokens
            .next()
            .with_context(|| format!("{}: the base names no end token", self.name))
    }

    /// The parameters on disk.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Checks that [`Self::save_as`] can write the folder.
    pub fn check_save_as(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(model::check_folder(folder, self.checkpoint.config())?)
    }

    /// Writes a base folder with these parameters, by name, and the configuration and tokenizer of
    /// this base.
    pub fn save_as(
        &self,
        folder: &Path,
        parameters: &BTreeMap<String, Tensor>,
    ) -> anyhow::Result<()> {
        model::save_folder(folder, self.checkpoint.config(), parameters)?;
        Ok(self.text.save(folder)?)
    }

    /// Makes the base resident, with a progress bar.
    pub fn load(&self, options: &LoadOptions) -> Result<Base, ModelError> {
        let (checkpoint, cache) = (&self.checkpoint, &self.cache);
        let mut bars = Bars::default();
        Base::load(&self.name, checkpoint, options, cache, &mut |progress| {
            bars.show(progress);
        })
    }
}

/// Parses a count of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("must be a count: {error}")),
    }
}

/// Parses a share of weights: above 0, at most 1.
pub fn density(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be a share above 0 and at most 1".to_owned()),
    }
}

/// Prints to standard output; a reader that closed the pipe early (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Progress bar of the current loading stage, on standard error.
#[derive(Default)]
pub struct Bars {
    current: Option<(Stage, ProgressBar)>,
}

impl Bars {
    /// Updates the bar, or begins the bar of the next stage.
    pub fn show(&mut self, progress: Progress) {
        let Progress { stage, done, total } = progress;
        if self
            .current
            .as_ref()
            .is_none_or(|(current, _)| *current != stage)
        {
            self.finish();
            self.current = Some((stage, bar(stage, total)));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done);
        }
        if done == total {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

/// Progress bar over `total` parameters.
pub fn parameter_bar(what: &'static str, total: usize) -> ProgressBar {
    progress_bar(what, "{pos}/{len} parameters", total as u64)
}

fn bar(stage: Stage, total: u64) -> ProgressBar {
    let (what, counts) = match stage {
        Stage::Fetch => (
            "fetching the base",
            "{bytes}/{total_bytes} {binary_bytes_per_sec}",
        ),
        Stage::Fingerprint => ("fingerprinting the base", "{pos}/{len} parameters"),
        Stage::Load => ("loading the base", "{pos}/{len} parameters"),
    };
    progress_bar(what, counts, total)
}

/// Progress bar on standard error over `total` items, whose count `counts` formats.
pub fn progress_bar(what: impl Into<Cow<'static, str>>, counts: &str, total: u64) -> ProgressBar {
    let template = format!("{{msg}} {{bar:30}} {counts} {{eta}}");
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// Tokenizer and chat template from the files of a base.
fn load_text(checkpoint: &Checkpoint) -> Result<Text, TextError> {
    match checkpoint.gguf_content() {
        Some(content) => Text::from_gguf(content),
        None => Text::from_folder(checkpoint.path()),
    }
}
