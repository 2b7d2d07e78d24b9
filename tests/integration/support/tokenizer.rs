//! A byte-level tokenizer: one token per byte, and an end-of-text token.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tombola::text::Text;

/// Id of the special token that ends a text. Lower ids are bytes.
pub const END: u32 = 256;

/// The tokenizer, with a template that renders a message as `<role>content`.
pub fn text() -> Arc<Text> {
    let dir = TempDir::new().unwrap();
    write_tokenizer(dir.path());
    Arc::new(Text::from_folder(dir.path()).unwrap())
}

/// Writes the tokenizer and its template into a model's folder.
pub fn write_tokenizer(folder: &Path) {
    write_json(&folder.join("tokenizer.json"), &tokenizer());
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let config = json!({"eos_token": "<|end|>", "chat_template": template});
    write_json(&folder.join("tokenizer_config.json"), &config);
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// The JSON of the tokenizer.
pub fn tokenizer() -> Value {
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    // GPT-2's alphabet: the other bytes are the characters from 256 on, in order.
    let mut others = 256..;
    let mut vocab = Map::new();
    for byte in 0..256 {
        let code = if printable(byte) {
            byte
        } else {
            others.next().unwrap()
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": END, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}
