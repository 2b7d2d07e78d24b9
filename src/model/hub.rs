//! Bases from a Hugging Face hub, through its own cache folder (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`).

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::checkpoint::{INDEX, shard_names};
use super::{ModelConfig, ModelError};

/// Fetches a repository's configuration, tokenizer and weights at its present commit, with a
/// progress bar a file, and returns their folder. Where the hub cannot be reached, what an earlier
/// fetch left is taken.
pub fn fetch(id: &str) -> Result<PathBuf, ModelError> {
    let failed = |what: &str, error: ApiError| ModelError::Fetch {
        what: format!("{what} of {id} (no such folder here, so a hub id)"),
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
            tracing::warn!("{error}; the cached files are taken");
            return Ok(folder);
        }
    };
    // One commit for all files, whatever is pushed meanwhile.
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone());
    let repo = api.repo(repo);
    let get = |name: &str| repo.get(name).map_err(|e| failed(name, e));
    let config = get("config.json")?;
    let folder = config.parent().unwrap_or(Path::new("")).to_owned();
    // A model that cannot be served is refused before its weights are fetched.
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
        tracing::warn!("{id}: the commit cannot be remembered for a start offline: {error}");
    }
    Ok(folder)
}

/// Beside the configuration and the weights themselves.
fn is_wanted(file: &str) -> bool {
    !file.contains('/')
        && (file == INDEX
            || file == "generation_config.json"
            || file.ends_with(".jinja")
            || (file.ends_with(".json") && file.contains("token")))
}

/// The folder of the last complete fetch.
fn cached(id: &str) -> Option<PathBuf> {
    let config = Cache::from_env().model(id.to_owned()).get("config.json")?;
    config.parent().map(Path::to_owned)
}
