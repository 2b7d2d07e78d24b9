//! Chat templates, and the messages that they render.

use std::fs;

use tempfile::TempDir;
use tombola::text::{ChatMessage, Text};

use super::outcome;
use crate::harness::{Target, fuzz};
use crate::support::tokenizer::tokenizer;

/// Separates the template from the messages of an input.
const SEPARATOR: &[u8] = b"\n----\n";
/// Most bytes of a rendered prompt.
const MAX_RENDERED: usize = 1 << 20;

#[test]
fn chat_templates() {
    let folder = TempDir::new().unwrap();
    fs::write(
        folder.path().join("tokenizer.json"),
        tokenizer().to_string(),
    )
    .unwrap();
    let mut run = |input: &[u8]| {
        let at = input.windows(SEPARATOR.len()).position(|w| w == SEPARATOR);
        let (source, messages) = input.split_at(at.unwrap_or(input.len()));
        let messages = messages.strip_prefix(SEPARATOR).unwrap_or_default();
        fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
        let text = match Text::from_folder(folder.path()) {
            Ok(text) => text,
            Err(error) => return outcome(Err::<(), _>(error)),
        };
        let messages = serde_json::from_slice(messages);
        let messages: Vec<ChatMessage> =
            messages.unwrap_or_else(|_| vec![ChatMessage::new("user", "Hi")]);
        let rendered = text.render_chat_within(&messages, true, MAX_RENDERED);
        if let Ok(prompt) = &rendered {
            assert!(prompt.len() <= MAX_RENDERED);
        }
        outcome(rendered)
    };
    fuzz(Target {
        name: "template",
        dictionary: &[
            b"{% for m in messages %}",
            b"{% endfor %}",
            b"{% if m.role == 'user' %}",
            b"{% endif %}",
            b"{{ m.content | trim }}",
            b"{{ messages | tojson(indent=4) }}",
            b"{% set ns = namespace(a=1) %}",
            b"{% macro a(x) %}{{ a(x) }}{% endmacro %}",
            b"{{ a(1) }}",
            b"{% for i in range(99999) %}",
            b"{% generation %}",
            b"{% endgeneration %}",
            b"{{ strftime_now('%Y %j %-d %q') }}",
            b"{{ raise_exception('no') }}",
            b"[::-1]",
            b".split('')",
            b" * 99999",
            b" ~ messages",
            b"((((((((((((((((((((((((((((((((",
            b"{% include 'chat_template' %}",
            b"\n----\n",
            b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        ],
        // A string in a template may be repeated up to 100 MB.
        memory: 512 << 20,
        memory_per_byte: 2000,
        run: &mut run,
    });
}
