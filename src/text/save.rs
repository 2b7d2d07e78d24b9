//! Tokenizer and chat template as files of a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::base::Text;
use super::error::TextError;

impl Text {
    /// Writes `tokenizer.json` and `tokenizer_config.json` into an existing folder, for
    /// [`Text::from_folder`] to read.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), TextError> {
        let path = folder.join("tokenizer.json");
        let failed = |path: &Path, reason: String| TextError::Write {
            path: path.to_owned(),
            reason,
        };
        self.tokenizer
            .save(&path, false)
            .map_err(|error| failed(&path, error.to_string()))?;
        let mut config: Map<String, Value> = self
            .sources
            .special_tokens
            .iter()
            .map(|(role, token)| (role.clone(), token.clone().into()))
            .collect();
        config.insert(
            "tokenizer_class".to_owned(),
            self.sources.class.clone().into(),
        );
        if let Some(template) = &self.sources.template {
            config.insert("chat_template".to_owned(), template.clone().into());
        }
        let path = folder.join("tokenizer_config.json");
        let text = format!("{:#}\n", Value::Object(config));
        std::fs::write(&path, text).map_err(|error| failed(&path, error.to_string()))
    }
}
