use candle_core::quantized::gguf_file::Value;

use super::*;
use crate::text::{ChatMessage, TextError};

#[test]
fn each_family_splits_digits_differently() {
    for (pre, expected) in [
        ("gpt-2", vec!["he", "ll", "o", " ", "123", "4"]),
        ("llama-bpe", vec!["he", "ll", "o", " ", "123", "4"]),
        ("smollm", vec!["he", "ll", "o", " ", "1", "2", "3", "4"]),
        ("qwen2", vec!["he", "ll", "o", " ", "1", "2", "3", "4"]),
    ] {
        assert_eq!(
            spelled(&byte_level_text(pre), "hello 1234"),
            expected,
            "{pre}"
        );
    }
    // Groups of three from the left: no merge crosses the end of a group.
    assert_eq!(
        spelled(&byte_level_text("llama-bpe"), "4123"),
        ["4", "12", "3"]
    );
    assert_eq!(spelled(&byte_level_text("gpt-2"), "4123"), ["4", "123"]);
}

#[test]
fn qwen2_composes_characters() {
    let text = byte_level_text("qwen2");
    assert_eq!(
        text.encode("e\u{301}", false).unwrap(),
        text.encode("é", false).unwrap()
    );
    let text = byte_level_text("smollm");
    assert_ne!(
        text.encode("e\u{301}", false).unwrap(),
        text.encode("é", false).unwrap()
    );
}

#[test]
fn no_space_is_added_before_the_first_word() {
    assert_eq!(spelled(&byte_level_text("smollm"), "he"), ["he"]);
}

#[test]
fn bos_is_added_if_requested_and_if_the_base_expects_it() {
    let he = |text: &Text, add| text.encode("he", add).unwrap();
    let text = byte_level_text("smollm");
    assert_eq!(he(&text, true), he(&text, false));
    let text = byte_level_text("llama-bpe");
    assert_eq!(he(&text, true), [vec![0], he(&text, false)].concat());

    let mut metadata = byte_level("smollm");
    metadata.insert("ggml.add_bos_token", Value::Bool(true));
    metadata.insert("ggml.add_eos_token", Value::Bool(true));
    let text = Text::from_gguf(&content(metadata)).unwrap();
    assert_eq!(
        he(&text, true),
        [vec![0], he(&text, false), vec![1]].concat()
    );
}

#[test]
fn special_tokens_are_recognised_and_left_out_on_demand() {
    let text = byte_level_text("smollm");
    let ids = text.encode("<s>he<tool></s>", false).unwrap();
    assert_eq!(ids.len(), 4);
    assert_eq!(text.decode(&ids, false).unwrap(), "<s>he<tool></s>");
    assert_eq!(text.decode(&ids, true).unwrap(), "he<tool>");
    assert_eq!(text.eos_token_ids(), [1]);
}

#[test]
fn a_gguf_provides_its_template_and_special_tokens() {
    let text = byte_level_text("smollm");
    assert!(text.has_chat_template());
    let messages = [ChatMessage::new("user", "a"), ChatMessage::new("user", "b")];
    assert_eq!(text.render_chat(&messages, true).unwrap(), "<s>a<s>b");

    let text = sentencepiece_text();
    assert!(!text.has_chat_template());
    assert!(matches!(
        text.render_chat(&messages, true),
        Err(TextError::NoChatTemplate)
    ));
}

#[test]
fn a_saved_text_reads_back_unchanged() {
    for text in [byte_level_text("smollm"), byte_level_text("llama-bpe")] {
        let folder = tempfile::tempdir().unwrap();
        text.save(folder.path()).unwrap();
        let again = Text::from_folder(folder.path()).unwrap();
        let prompt = "<s>hello 1234 é\u{301} <tool>";
        for add in [false, true] {
            assert_eq!(
                again.encode(prompt, add).unwrap(),
                text.encode(prompt, add).unwrap()
            );
        }
        let messages = [ChatMessage::new("user", "hello")];
        let chat = |text: &Text| text.render_chat(&messages, true).unwrap();
        assert_eq!(chat(&again), chat(&text));
        assert_eq!(again.eos_token_ids(), text.eos_token_ids());
    }
}

#[test]
fn a_template_that_does_not_compile_is_named_at_load() {
    let mut metadata = byte_level("smollm");
    metadata.insert("chat_template", Value::String("{% for %}".into()));
    let error = Text::from_gguf(&content(metadata)).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.chat_template") && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn faulty_gguf_metadata_is_named_in_one_line() {
    let faults: Vec<(&'static str, Option<Value>, &str)> = vec![
        (
            "ggml.model",
            None,
            "`tokenizer.ggml.model`: found nothing, expected `gpt2`",
        ),
        ("ggml.model", Some(Value::String("t5".into())), "found `t5`"),
        (
            "ggml.pre",
            Some(Value::String("tekken".into())),
            "`tokenizer.ggml.pre`: found `tekken`, expected smollm",
        ),
        (
            "ggml.tokens",
            None,
            "`tokenizer.ggml.tokens`: found nothing, expected a list of strings",
        ),
        (
            "ggml.tokens",
            Some(Value::Array(vec![Value::U8(1)])),
            "found a list of another type",
        ),
        (
            "ggml.token_type",
            Some(Value::Array(vec![])),
            "found 0 types for 263 tokens",
        ),
        (
            "ggml.merges",
            Some(strings(["he"])),
            "`tokenizer.ggml.merges`: found `he`",
        ),
        (
            "ggml.merges",
            Some(strings(["x y"])),
            "`tokenizer.ggml.merges`: found",
        ),
        (
            "ggml.eos_token_id",
            Some(Value::U32(999)),
            "`tokenizer.ggml.eos_token_id`: found 999",
        ),
        (
            "ggml.eos_token_id",
            Some(Value::I32(-1)),
            "`tokenizer.ggml.eos_token_id`: found I32(-1)",
        ),
    ];
    for (key, value, expected) in faults {
        let mut metadata = byte_level("smollm");
        match value {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(key),
        };
        let error = Text::from_gguf(&content(metadata)).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.lines().count() == 1,
            "{error}"
        );
    }
    let mut metadata = sentencepiece();
    metadata.insert("ggml.scores", Value::Array(vec![Value::F32(0.0)]));
    let error = Text::from_gguf(&content(metadata)).unwrap_err().to_string();
    assert!(error.contains("found 1 scores for 265 tokens"), "{error}");
}

#[test]
fn sentencepiece_marks_words_and_falls_back_to_bytes() {
    let text = sentencepiece_text();
    let ids = text.encode("hi hé", true).unwrap();
    let pieces: Vec<String> = ids.iter().map(|&id| text.token_text(id)).collect();
    assert_eq!(pieces, ["<s>", " hi", " h", "\u{FFFD}", "\u{FFFD}"]);
    assert_eq!(text.decode(&ids, true).unwrap(), "hi hé");
    assert_eq!(text.token_bytes(ids[3]), "é".as_bytes()[..1].to_vec());
}
