//! Tests of the whole layer, on small tokenizers built here.

mod gguf;
mod hugging_face;
mod stream;

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Text;

fn strings<S: Into<String>>(items: impl IntoIterator<Item = S>) -> Value {
    Value::Array(
        items
            .into_iter()
            .map(|item| Value::String(item.into()))
            .collect(),
    )
}

fn content(metadata: impl IntoIterator<Item = (&'static str, Value)>) -> Content {
    let prefixed = metadata
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.{key}"), value));
    Content {
        magic: VersionedMagic::GgufV3,
        metadata: prefixed.collect(),
        tensor_infos: HashMap::new(),
        tensor_data_offset: 0,
    }
}

/// Metadata of a byte-level vocabulary: two control tokens, all bytes, a user-defined token, four
/// merges.
fn byte_level(pre: &str) -> HashMap<&'static str, Value> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens = vec!["<s>".to_owned(), "</s>".to_owned()];
    tokens.extend(alphabet.iter().map(char::to_string));
    let mut types = vec![Value::I32(1); tokens.len()];
    types[..2].fill(Value::I32(3));
    tokens.push("<tool>".into());
    types.push(Value::I32(4));
    let merges = ["h e", "l l", "1 2", "12 3"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    types.extend(vec![Value::I32(1); merges.len()]);
    HashMap::from([
        ("ggml.model", Value::String("gpt2".into())),
        ("ggml.pre", Value::String(pre.into())),
        ("ggml.tokens", strings(tokens)),
        ("ggml.token_type", Value::Array(types)),
        ("ggml.merges", strings(merges)),
        ("ggml.bos_token_id", Value::U32(0)),
        ("ggml.eos_token_id", Value::U32(1)),
        (
            "chat_template",
            Value::String("{% for m in messages %}{{ bos_token + m.content }}{% endfor %}".into()),
        ),
    ])
}

pub(crate) fn byte_level_text(pre: &str) -> Text {
    Text::from_gguf(&content(byte_level(pre))).unwrap()
}

/// A byte-level [`Text`] that begins plain prompts with `<s>` and has this chat template.
pub(crate) fn chat_text(template: &str) -> Text {
    let mut metadata = byte_level("llama-bpe");
    metadata.insert("ggml.add_bos_token", Value::Bool(true));
    metadata.insert("chat_template", Value::String(template.into()));
    Text::from_gguf(&content(metadata)).unwrap()
}

/// A byte-level [`Text`] whose `<left>` and `<right>` swallow the white space beside them.
pub(crate) fn stripping_text() -> Text {
    let mut tokenizer = byte_level_text("smollm").tokenizer;
    let added = |content: &str| tokenizers::AddedToken::from(content, true);
    tokenizer
        .add_special_tokens([added("<left>").lstrip(true), added("<right>").rstrip(true)])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(file, tokenizer.to_string(false).unwrap()).unwrap();
    Text::from_folder(folder.path()).unwrap()
}

fn spelled(text: &Text, input: &str) -> Vec<String> {
    text.encode(input, false)
        .unwrap()
        .into_iter()
        .map(|id| text.token_text(id))
        .collect()
}

/// Metadata of a SentencePiece vocabulary with byte fallback.
fn sentencepiece() -> HashMap<&'static str, Value> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![Value::I32(6); tokens.len()];
    types[..3].fill(Value::I32(3));
    types[0] = Value::I32(2);
    let pieces = ["▁hi", "▁h", "hi", "▁", "h", "i"];
    tokens.extend(pieces.map(String::from));
    types.extend(vec![Value::I32(1); pieces.len()]);
    let scores = (0..tokens.len())
        .map(|id| Value::F32(-(id as f32)))
        .collect();
    HashMap::from([
        ("ggml.model", Value::String("llama".into())),
        ("ggml.tokens", strings(tokens)),
        ("ggml.token_type", Value::Array(types)),
        ("ggml.scores", Value::Array(scores)),
        ("ggml.bos_token_id", Value::U32(1)),
        ("ggml.eos_token_id", Value::U32(2)),
        ("ggml.unknown_token_id", Value::U32(0)),
    ])
}

pub(crate) fn sentencepiece_text() -> Text {
    Text::from_gguf(&content(sentencepiece())).unwrap()
}
