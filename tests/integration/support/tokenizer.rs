//! Byte-level tokenizers without merges, and one of them: one token per byte, and an end-of-text
//! token.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tombola::text::Text;

/// Id of the special token that ends a text. Lower ids are bytes.
pub const END: u32 = 256;

/// The tokenizer of all bytes, with its template.
pub fn text() -> Arc<Text> {
    let dir = TempDir::new().unwrap();
    write_tokenizer(dir.path(), &tokenizer());
    Arc::new(Text::from_folder(dir.path()).unwrap())
}

/// Writes a tokenizer into a model's folder, and a template that renders a message as
/// `<role>content`.
pub fn write_tokenizer(folder: &Path, tokenizer: &Value) {
    write_json(&folder.join("tokenizer.json"), tokenizer);
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let config = json!({"eos_token": "<|end|>", "chat_template": template});
    write_json(&folder.join("tokenizer_config.json"), &config);
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// The JSON of the tokenizer of all bytes.
pub fn tokenizer() -> Value {
    tokenizer_of(0..=255)
}

/// The JSON of a tokenizer of these bytes, whose ids are in this order. The id after them ends a
/// text.
pub fn tokenizer_of(bytes: impl Iterator<Item = u8>) -> Value {
    let letters = alphabet();
    let vocab: Map<String, Value> = bytes
        .zip(0u32..)
        .map(|(byte, id)| (letters[usize::from(byte)].to_string(), id.into()))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": vocab.len(), "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// GPT-2's letter of each byte: printable ones are themselves, the others the characters from 256
/// on, in order.
fn alphabet() -> Vec<char> {
    let mut others = 256..;
    let codes = (0..256).map(|byte| match byte {
        33..=126 | 161..=172 | 174..=255 => byte,
        _ => others.next().unwrap(),
    });
    codes.map(|code| char::from_u32(code).unwrap()).collect()
}
