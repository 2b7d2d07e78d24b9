use std::fs;

use serde_json::json;

use super::*;
use crate::text::ChatMessage;

/// A folder with a tokenizer and these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = byte_level_text("smollm")
        .tokenizer
        .to_string(false)
        .unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn rendered(dir: &tempfile::TempDir) -> String {
    let text = Text::from_folder(dir.path()).unwrap();
    text.render_chat(&[ChatMessage::new("user", "a")], false)
        .unwrap()
}

#[test]
fn a_folder_and_a_gguf_with_the_same_tokenizer_agree() {
    let dir = folder(&[(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "</s>"}, "bos_token": null}"#,
    )]);
    let text = Text::from_folder(dir.path()).unwrap();
    let input = "<s>hello 123 é";
    assert_eq!(
        text.encode(input, true).unwrap(),
        byte_level_text("smollm").encode(input, true).unwrap()
    );
    assert_eq!(text.eos_token_ids(), [1]);
    assert!(!text.has_chat_template());
}

#[test]
fn truncation_and_padding_of_a_tokenizer_file_are_dropped() {
    let dir = folder(&[]);
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>",
    });
    fs::write(&path, tokenizer.to_string()).unwrap();
    let text = Text::from_folder(dir.path()).unwrap();
    assert_eq!(text.encode("abc", true).unwrap().len(), 3);
}

#[test]
fn a_template_file_takes_precedence_over_the_configuration() {
    let config = r#"{
        "chat_template": [
            {"name": "rag", "template": "rag"},
            {"name": "default", "template": "list {{ eos_token }}"}
        ],
        "eos_token": "</s>"
    }"#;
    let json = r#"{"chat_template": "json"}"#;
    let map = r#"{"bos_token": "<s>", "eos_token": "other"}"#;
    assert_eq!(
        rendered(&folder(&[(
            "tokenizer_config.json",
            r#"{"chat_template": "one"}"#
        )])),
        "one"
    );
    let mut files = vec![
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ];
    assert_eq!(rendered(&folder(&files)), "list </s>");
    files.push(("chat_template.json", json));
    assert_eq!(rendered(&folder(&files)), "json");
    files.push(("chat_template.jinja", "jinja {{ bos_token }}"));
    assert_eq!(rendered(&folder(&files)), "jinja <s>");
}

#[test]
fn a_missing_or_broken_file_is_named_with_what_was_expected() {
    let empty = tempfile::tempdir().unwrap();
    let error = Text::from_folder(empty.path()).unwrap_err().to_string();
    let path = empty.path().join("tokenizer.json");
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(
        error.contains("expected a Hugging Face fast tokenizer"),
        "{error}"
    );

    for (name, text, expected) in [
        ("tokenizer.json", "{}", "fast tokenizer"),
        (
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "fast tokenizer",
        ),
        ("tokenizer_config.json", "{\"eos_token\": ", "a JSON object"),
        ("tokenizer_config.json", "[]", "a JSON object"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#,
            "`default`",
        ),
        ("special_tokens_map.json", "nothing", "a JSON object"),
        ("chat_template.json", "{}", "a string `chat_template`"),
        ("chat_template.jinja", "{% if x %}", "does not compile"),
    ] {
        let dir = folder(&[(name, text)]);
        let error = Text::from_folder(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&dir.path().join(name).display().to_string()),
            "{error}"
        );
        assert!(
            error.contains(expected) && error.lines().count() == 1,
            "{error}"
        );
    }
}
