//! Bases from a Hugging Face hub, through its usual cache folder (environment: `HF_HOME`,
//! `HF_ENDPOINT`, `HF_TOKEN`).

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::checkpoint::{INDEX, shard_names};
use super::{ModelConfig, ModelError};

/// Fetches the configuration, tokenizer and weights of a repository at its latest commit, with one
/// progress bar per file, and returns their folder. If the hub cannot be reached, falls back to the
/// files of the last complete fetch.
///
/// # Errors
/// A file cannot be fetched, or the architecture is not supported.
pub fn fetch(id: &str) -> Result<PathBuf, ModelError> {
    let failed = |what: &str, error: ApiError| ModelError::Fetch {
        what: format!("{what} of {id} (not a local folder, so taken as a hub id)"),
        reason: error.to_string(),
    };
    let mut builder = ApiBuilder::from_env().with_progress(true);
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|e| failed("hub client", e))?;
    let info = match api.model(id.to_owned()).info() {
        Ok(info) => info,
        Err(error) => {
            let error = failed("list of files", error);
            let Some(folder) = cached(id) else {
                return Err(error);
            };
            tracing::warn!("{error}; using the cached files");
            return Ok(folder);
        }
    };
    // All files of the same commit, even if another commit is pushed meanwhile.
    let revision = Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone());
    let repo = api.repo(revision);
    let get = |name: &str| repo.get(name).map_err(|e| failed(name, e));
    let config = get("config.json")?;
    let folder = config.parent().unwrap_or(Path::new("")).to_owned();
    // Refuse an unsupported model before its weights are fetched.
    ModelConfig::from_folder(&folder)?;
    let files = info.siblings.iter().map(|file| file.rfilename.as_str());
    for file in files.filter(|file| is_wanted(file)) {
        get(file)?;
    }
    for shard in shard_names(&folder)? {
        get(&shard)?;
    }
    let main = Cache::from_env().model(id.to_owned());
    if let Err(error) = main.create_ref(&info.sha) {
        tracing::warn!("{id}: cannot record the commit for later offline starts: {error}");
    }
    Ok(folder)
}

/// Whether a file is needed in addition to the configuration and the weights.
fn is_wanted(file: &str) -> bool {
    !file.contains('/')
        && (file == INDEX
            || file == "generation_config.json"
            || file.ends_with(".jinja")
            || (file.ends_with(".json") && file.contains("token")))
}

/// Folder of the last complete fetch, if there is one.
fn cached(id: &str) -> Option<PathBuf> {
    let config = Cache::from_env().model(id.to_owned()).get("config.json")?;
    config.parent().map(Path::to_owned)
}
