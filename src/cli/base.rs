//! What several subcommands share: which base, where its files are kept, and bars for what takes
//! long.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::model::{self, CacheDir, Checkpoint, DEFAULT_MODEL, ModelError, Progress, Stage};
use crate::text::{Text, TextError};
use crate::ticket::BaseManifest;

/// Which base, and where fetched files are kept.
#[derive(Clone, Debug, Args)]
pub struct BaseArgs {
    /// The base: a folder in Hugging Face layout, a .gguf file, a hub id (owner/name), or the
    /// built-in smollm2-135m.
    #[arg(long, value_name = "BASE", env = "TOMBOLA_MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Folder for what can be fetched or computed again [default: the user's cache folder].
    #[arg(long, value_name = "DIR", env = "TOMBOLA_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
}

impl BaseArgs {
    pub fn cache(&self) -> CacheDir {
        CacheDir::at(
            self.cache_dir
                .clone()
                .unwrap_or_else(CacheDir::default_path),
        )
    }

    /// The base's manifest, without making it resident.
    pub fn manifest(&self) -> Result<BaseManifest, ModelError> {
        let mut bars = Bars::default();
        model::manifest(&self.model, &self.cache(), &mut |progress| {
            bars.show(progress);
        })
    }
}

/// One bar at a time, on standard error, for the stage that is under way.
#[derive(Default)]
pub struct Bars {
    current: Option<(Stage, ProgressBar)>,
}

impl Bars {
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

fn bar(stage: Stage, total: u64) -> ProgressBar {
    let (what, counts) = match stage {
        Stage::Fetch => (
            "fetching the base",
            "{bytes}/{total_bytes} {binary_bytes_per_sec}",
        ),
        Stage::Fingerprint => ("fingerprinting the base", "{pos}/{len} parameters"),
        Stage::Load => ("loading the base", "{pos}/{len} parameters"),
    };
    let template = format!("{{msg}} {{bar:30}} {counts} {{eta}}");
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// The tokenizer and chat template that lie with a base's weights.
pub fn load_text(checkpoint: &Checkpoint) -> Result<Text, TextError> {
    match checkpoint.gguf_content() {
        Some(content) => Text::from_gguf(content),
        None => Text::from_folder(checkpoint.path()),
    }
}
