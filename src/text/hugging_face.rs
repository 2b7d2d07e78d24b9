//! Tokenizer and chat template from a Hugging Face folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::TextError;
use super::template::MAX_TEMPLATE_BYTES;
use super::tokenizer_parts::{TemplateSource, TokenizerParts};

/// Maximum size of `tokenizer.json`. The largest known one has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Maximum size of each other file of JSON.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Class that transformers loads a `tokenizer.json` with if the folder names none.
const DEFAULT_CLASS: &str = "PreTrainedTokenizerFast";

const TOKENIZER: &str = "a Hugging Face fast tokenizer as JSON";
const CONFIG: &str = "a JSON object";
const TEMPLATE: &str = "a Jinja chat template in UTF-8";
const TEMPLATE_JSON: &str = "a JSON object with a string `chat_template`";
const CONFIG_TEMPLATE: &str =
    "`chat_template` to be a string, or a list of {name, template} with a `default`";

/// Reads the files that [`Text::from_folder`](super::Text::from_folder) lists.
pub(super) fn read(dir: &Path) -> Result<TokenizerParts, TextError> {
    let path = dir.join("tokenizer.json");
    let json = read_bounded(&path, TOKENIZER, MAX_TOKENIZER_BYTES)?;
    let tokenizer = json
        .parse::<Tokenizer>()
        .map_err(|error| broken(&path, TOKENIZER, error.to_string()))?;

    let config_path = dir.join("tokenizer_config.json");
    let config = read_object(&config_path)?;
    let mut special_tokens = special_tokens(&read_object(&dir.join("special_tokens_map.json"))?);
    special_tokens.extend(self::special_tokens(&config));
    let eos_token_ids = ["eos_token", "eot_token"]
        .iter()
        .filter_map(|&role| tokenizer.token_to_id(special_tokens.get(role)?))
        .collect();
    let template = read_template(dir, &config, &config_path)?;
    Ok(TokenizerParts {
        tokenizer,
        class: config["tokenizer_class"]
            .as_str()
            .unwrap_or(DEFAULT_CLASS)
            .to_owned(),
        special_tokens,
        template,
        eos_token_ids,
        origin: path.display().to_string(),
    })
}

/// The chat template, from the first of its files that exists.
fn read_template(
    dir: &Path,
    config: &Value,
    config_path: &Path,
) -> Result<Option<TemplateSource>, TextError> {
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read_optional(&path, TEMPLATE, MAX_TEMPLATE_BYTES as u64)? {
        return Ok(Some(template_source(source, &path)));
    }
    let path = dir.join("chat_template.json");
    let json = read_object(&path)?;
    if !json.is_null() {
        let source = json["chat_template"].as_str().ok_or_else(|| {
            broken(
                &path,
                TEMPLATE_JSON,
                "`chat_template` is missing or not a string".into(),
            )
        })?;
        return Ok(Some(template_source(source.to_owned(), &path)));
    }
    let source = match &config["chat_template"] {
        Value::Null => return Ok(None),
        Value::String(source) => Some(source.as_str()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str()),
        _ => None,
    };
    let source = source.ok_or_else(|| {
        broken(
            config_path,
            CONFIG_TEMPLATE,
            "`chat_template` is neither".into(),
        )
    })?;
    Ok(Some(template_source(source.to_owned(), config_path)))
}

fn template_source(source: String, path: &Path) -> TemplateSource {
    TemplateSource {
        source,
        origin: path.display().to_string(),
    }
}

/// Texts of the special tokens by role (`bos_token`, `eos_token`, ...). Each is a string, or an
/// object with the string as its `content`.
fn special_tokens(config: &Value) -> BTreeMap<String, String> {
    config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(role, _)| role.ends_with("_token"))
        .filter_map(|(role, token)| {
            let text = token.as_str().or_else(|| token["content"].as_str())?;
            Some((role.clone(), text.to_owned()))
        })
        .collect()
}

/// Reads an optional file that holds a JSON object; null if it is absent.
fn read_object(path: &Path) -> Result<Value, TextError> {
    let Some(json) = read_optional(path, CONFIG, MAX_CONFIG_BYTES)? else {
        return Ok(Value::Null);
    };
    let value: Value =
        serde_json::from_str(&json).map_err(|error| broken(path, CONFIG, error.to_string()))?;
    if !value.is_object() {
        return Err(broken(path, CONFIG, "it holds another type".into()));
    }
    Ok(value)
}

fn read_optional(
    path: &Path,
    expected: &'static str,
    max_bytes: u64,
) -> Result<Option<String>, TextError> {
    match read_bounded(path, expected, max_bytes) {
        Err(TextError::Read { error, .. }) if error.kind() == ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

/// Reads a regular file of at most `max_bytes` bytes.
fn read_bounded(path: &Path, expected: &'static str, max_bytes: u64) -> Result<String, TextError> {
    let unreadable = |error| TextError::Read {
        path: path.to_owned(),
        expected,
        error,
    };
    // Checked before opening: opening a pipe waits for a writer.
    let info = std::fs::metadata(path).map_err(unreadable)?;
    if !info.is_file() {
        return Err(broken(path, expected, "it is not a regular file".into()));
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    // One byte more than allowed, to tell a file that is larger.
    let mut bounded = file.take(max_bytes + 1);
    bounded.read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > max_bytes {
        let reason = format!("it has more than {max_bytes} bytes");
        return Err(broken(path, expected, reason));
    }
    Ok(text)
}

fn broken(path: &Path, expected: &'static str, reason: String) -> TextError {
    TextError::File {
        path: path.to_owned(),
        expected,
        reason,
    }
}
