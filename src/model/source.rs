//! Sources of a base, and their resolution to local files.

use std::path::{Path, PathBuf};

use super::checkpoint::Files;
use super::fetch::{CacheDir, default_gguf};
use super::progress::Progress;
use super::{ModelError, hub};

/// The built-in base: SmolLM2-135M-Instruct.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Where a base comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The built-in base, [`DEFAULT_MODEL`].
    Default,
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// `owner/name` on a Hugging Face hub.
    Hub(String),
}

impl Source {
    /// Parses a model argument. Existing folders and files take precedence over the hub.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] if `model` matches no kind.
    pub fn parse(model: &str) -> Result<Self, ModelError> {
        let path = Path::new(model);
        let is_gguf = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if model == DEFAULT_MODEL {
            Ok(Self::Default)
        } else if path.is_dir() {
            Ok(Self::Folder(path.to_owned()))
        } else if is_gguf || path.is_file() {
            Ok(Self::Gguf(path.to_owned()))
        } else if is_hub_id(model) {
            Ok(Self::Hub(model.to_owned()))
        } else {
            Err(ModelError::UnknownModel(model.to_owned()))
        }
    }

    /// Default name of the base in requests: never a whole path.
    pub fn name(&self) -> String {
        let lossy = |part: Option<&std::ffi::OsStr>| {
            part.map_or("base".to_owned(), |p| p.to_string_lossy().into_owned())
        };
        match self {
            Self::Default => DEFAULT_MODEL.to_owned(),
            Self::Folder(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                lossy(path.file_name())
            }
            Self::Gguf(path) => lossy(path.file_stem()),
            Self::Hub(id) => id.clone(),
        }
    }

    /// The local files, which are fetched first if they are missing.
    ///
    /// # Errors
    /// The files cannot be fetched, or do not exist.
    pub fn resolve(
        &self,
        cache: &CacheDir,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Files, ModelError> {
        match self {
            Self::Default => Ok(Files::Gguf(default_gguf(cache, progress)?)),
            Self::Folder(path) => Ok(Files::Folder(path.clone())),
            Self::Gguf(path) => {
                std::fs::metadata(path).map_err(ModelError::io(path))?;
                Ok(Files::Gguf(path.clone()))
            }
            Self::Hub(id) => Ok(Files::Folder(hub::fetch(id)?)),
        }
    }
}

fn is_hub_id(text: &str) -> bool {
    let part = |p: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !p.is_empty() && !p.starts_with('.') && p.bytes().all(known)
    };
    let mut parts = text.split('/');
    parts.next().is_some_and(part) && parts.next().is_some_and(part) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_each_kind_of_source() {
        let folder = tempfile::tempdir().unwrap();
        let folder_name = folder.path().to_str().unwrap();
        assert_eq!(Source::parse(DEFAULT_MODEL).unwrap(), Source::Default);
        assert_eq!(
            Source::parse(folder_name).unwrap(),
            Source::Folder(folder.path().to_owned())
        );
        assert_eq!(
            Source::parse("a/b.gguf").unwrap(),
            Source::Gguf("a/b.gguf".into())
        );
        assert_eq!(
            Source::parse("Qwen/Qwen3-0.6B").unwrap(),
            Source::Hub("Qwen/Qwen3-0.6B".into())
        );
        for wrong in [
            "",
            "nope",
            "/no/such/folder",
            "../no-such-base",
            "a/b/c",
            "owner/",
            "a b/c",
        ] {
            let error = Source::parse(wrong).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{wrong:?}")) && error.contains("hub id"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        assert_eq!(
            Source::Gguf("some/where/tiny.Q4_1.gguf".into()).name(),
            "tiny.Q4_1"
        );
        assert_eq!(Source::Hub("owner/model".into()).name(), "owner/model");
        let folder = tempfile::tempdir().unwrap();
        assert!(
            !Source::Folder(folder.path().to_owned())
                .name()
                .contains('/')
        );
    }

    #[test]
    fn a_missing_gguf_is_named() {
        let cache = CacheDir::at(std::env::temp_dir());
        let source = Source::parse("no/such/model.gguf").unwrap();
        let error = source.resolve(&cache, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("no/such/model.gguf"), "{error}");
    }
}
