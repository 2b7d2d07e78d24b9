//! Answers in every dialect, whole and in pieces.

mod calls;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::delta::push_delta;
use super::*;

fn tools() -> Arc<[Tool]> {
    let tools = json!([
        {"type": "function", "function": {"name": "add", "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": ["integer", "null"]}},
        }}},
        {"type": "function", "function": {"name": "say", "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "more": {"type": "array"}},
        }}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    parse_tools(tools).unwrap().into()
}

fn options(dialect: ToolDialect) -> ParserOptions {
    ParserOptions {
        tools: tools(),
        dialect: Some(dialect),
        ..ParserOptions::default()
    }
}

/// The deltas of an answer in these pieces, neighbours of a kind joined, ids left out.
fn deltas<'a>(
    options: &ParserOptions,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Vec<MessageDelta> {
    let mut parser = MessageParser::new(options.clone());
    let mut joined = Vec::new();
    let mut all: Vec<MessageDelta> = pieces
        .into_iter()
        .flat_map(|text| parser.push(text))
        .collect();
    all.extend(parser.finish());
    for mut delta in all {
        if let MessageDelta::ToolCall { id, .. } = &mut delta {
            assert!(id.len() == 9 || id.len() == 29, "{id}");
            id.clear();
        }
        push_delta(&mut joined, delta);
    }
    joined
}

/// Cuts text into pieces of one character.
fn characters(text: &str) -> impl Iterator<Item = &str> {
    text.char_indices()
        .map(|(at, c)| &text[at..at + c.len_utf8()])
}

/// An answer in short: reasoning, content, and calls as name and arguments.
#[derive(Debug, PartialEq)]
struct Message {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
}

fn message(options: &ParserOptions, text: &str) -> Message {
    let whole = deltas(options, [text]);
    assert_eq!(
        deltas(options, characters(text)),
        whole,
        "in pieces: {text}"
    );
    let mut message = Message {
        reasoning: String::new(),
        content: String::new(),
        calls: Vec::new(),
    };
    for delta in whole {
        match delta {
            MessageDelta::Reasoning(text) => message.reasoning += &text,
            MessageDelta::Content(text) => message.content += &text,
            MessageDelta::ToolCall { index, name, .. } => {
                assert_eq!(index, message.calls.len());
                message.calls.push((name, String::new()));
            }
            MessageDelta::Arguments { index, text } => message.calls[index].1 += &text,
        }
    }
    message
}

/// Content and calls, with the arguments as values.
fn parsed(dialect: ToolDialect, text: &str) -> (String, Vec<(String, Value)>) {
    let message = message(&options(dialect), text);
    let calls = message.calls.into_iter().map(|(name, arguments)| {
        let value = serde_json::from_str(&arguments);
        (
            name,
            value.unwrap_or_else(|error| panic!("{error}: {arguments}")),
        )
    });
    (message.content, calls.collect())
}

fn call(name: &str, arguments: Value) -> (String, Value) {
    (name.to_owned(), arguments)
}

#[test]
fn reasoning_is_apart_from_content() {
    let read = |reasoning, prompt: &str, text: &str| {
        let options = ParserOptions {
            reasoning,
            prompt_end: PromptEnd::of(prompt),
            ..options(ToolDialect::Hermes)
        };
        let message = message(&options, text);
        (message.reasoning, message.content, message.calls.len())
    };
    use ReasoningDialect::{DeepseekR1, None, Qwen3};
    let both = "<think>\nWell,\n\nso </thin\n</think>\n\nYes. \n";
    let closed = "Well\n</think>\n\n<tool_call>{\"name\": \"now\"}</tool_call>";
    for (dialect, prompt, text, reasoning, content, calls) in [
        (Qwen3, "", both, "Well,\n\nso </thin", "Yes. \n", 0),
        (DeepseekR1, "", both, "Well,\n\nso </thin", "Yes. \n", 0),
        (None, "", both, "", both, 0),
        (Qwen3, "<think>\n", closed, "Well", "", 1),
        (DeepseekR1, "", closed, "Well", "", 1),
        (Qwen3, "", "Yes </think>", "", "Yes </think>", 0),
        (Qwen3, "<think>\n\n</think>\n\n", "Yes", "", "Yes", 0),
        (DeepseekR1, "</think>", "Yes", "", "Yes", 0),
        (Qwen3, "", "<think>\n\n</think>\n\nYes", "", "Yes", 0),
        (Qwen3, "", "<think>cut off <", "cut off <", "", 0),
        (Qwen3, "", " <thi", "", " <thi", 0),
    ] {
        let expected = (reasoning.to_owned(), content.to_owned(), calls);
        assert_eq!(read(dialect, prompt, text), expected, "{dialect}: {text}");
    }
}

#[test]
fn reasoning_that_is_not_wanted_is_dropped() {
    let options = ParserOptions {
        reasoning: ReasoningDialect::Qwen3,
        include_reasoning: false,
        ..ParserOptions::default()
    };
    let message = message(&options, "<think>Well</think>Yes");
    assert_eq!((&*message.reasoning, &*message.content), ("", "Yes"));
}

#[test]
fn dialects_are_detected_and_named() {
    for (template, dialect) in [
        (
            "<tool_call>\n<function=example>",
            Some(ToolDialect::Qwen3Coder),
        ),
        ("<tool_call>\n{\"name\"", Some(ToolDialect::Hermes)),
        ("{{ '[TOOL_CALLS]' }}", Some(ToolDialect::Mistral)),
        ("'<|python_tag|>'", Some(ToolDialect::Llama3Json)),
        ("[func_name1(params_name1=1)]", Some(ToolDialect::Pythonic)),
        ("<|im_start|>", None),
    ] {
        assert_eq!(ToolDialect::detect(template), dialect);
    }
    for dialect in ToolDialect::ALL {
        assert_eq!(dialect.name().parse(), Ok(dialect));
    }
    let error = "hermes2".parse::<ToolDialect>().unwrap_err().to_string();
    assert!(
        error.starts_with("`hermes2` is unknown; expected one of hermes, "),
        "{error}"
    );
    assert_eq!(ReasoningDialect::detect("<think>"), ReasoningDialect::Qwen3);
    assert_eq!(
        ReasoningDialect::detect("<｜Assistant｜></think>"),
        ReasoningDialect::DeepseekR1
    );
}

/// Pieces of calls in all dialects, and text.
fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"now\"",
        ", \"arguments\": ",
        "{}",
        "}",
        "{",
        "\"ж\"",
        "[TOOL_CALLS]",
        "[ARGS]",
        "now",
        "[",
        "]",
        "now()",
        "(",
        ")",
        "say(text='ж'",
        "<function=say>",
        "<parameter=text>",
        "</parameter>",
        "</function>",
        "ж",
        " ",
        "\n",
        ";",
        ",",
        ":",
        "{\"name\": \"say\", \"parameters\": {\"text\": \"ж",
        "\"}}",
        "<think>",
        "</think>",
        "<",
        "<|python_tag|>",
        "\\",
        "'",
        "add(a=[1,",
        "say",
    ])
}

proptest! {
    /// Letters that no marker has are neither lost nor doubled, and pieces do not matter.
    #[test]
    fn nothing_is_lost(
        fragments in prop::collection::vec(fragment(), 0..16),
        dialect in prop::sample::select(ToolDialect::ALL.to_vec()),
        thinks in any::<bool>(),
    ) {
        let options = ParserOptions {
            reasoning: if thinks { ReasoningDialect::Qwen3 } else { ReasoningDialect::None },
            ..options(dialect)
        };
        let text = fragments.concat();
        let message = message(&options, &text);
        let letters = |text: &str| text.matches('ж').count();
        let arguments: String = message.calls.iter().map(|(_, text)| &**text).collect();
        let read = letters(&message.reasoning) + letters(&message.content) + letters(&arguments);
        prop_assert_eq!(read, letters(&text), "{:?} of {}", message, text);
        if message.calls.is_empty() && !thinks {
            prop_assert_eq!(message.content, text);
        }
    }
}
