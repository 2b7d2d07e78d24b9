//! A base's text as files in Hugging Face layout.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Text, TextError};

impl Text {
    /// Writes `tokenizer.json` and `tokenizer_config.json`, which [`Text::from_folder`] reads, into a
    /// folder that is there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), TextError> {
        let path = folder.join("tokenizer.json");
        let failed = |path: &Path, reason: String| TextError::Write {
            path: path.to_owned(),
            reason,
        };
        let saved = self.tokenizer.save(&path, false);
        saved.map_err(|error| failed(&path, error.to_string()))?;
        let tokens = self.sources.special_tokens.iter();
        let mut config: Map<String, Value> = tokens
            .map(|(role, token)| (role.clone(), token.clone().into()))
            .collect();
        if let Some(template) = &self.sources.template {
            config.insert("chat_template".to_owned(), template.clone().into());
        }
        let path = folder.join("tokenizer_config.json");
        let text = format!("{:#}\n", Value::Object(config));
        std::fs::write(&path, text).map_err(|error| failed(&path, error.to_string()))
    }
}
