//! Answers in every dialect, whole and in pieces.

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
fn hermes_calls_are_parsed() {
    let text = "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \
         {\"c\": [\"}</tool_call>{\\\"\", \"é🤗\\n\"]}}}\n</tool_call>\n<tool_call>\
         {\"arguments\": {}, \"name\": \"now\"}</tool_call>\n";
    let nested = json!({"a": 1, "b": {"c": ["}</tool_call>{\"", "é🤗\n"]}});
    assert_eq!(
        parsed(ToolDialect::Hermes, text),
        (
            "Let me see.".to_owned(),
            vec![call("add", nested), call("now", json!({}))]
        )
    );
    // Arguments as text, none at all, and an answer that ends before the end of the marker.
    let text = "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 2}\"}</tool_call>\
         <tool_call>{\"name\": \"now\"}</tool_c";
    let calls = vec![call("add", json!({"a": 2})), call("now", json!({}))];
    assert_eq!(parsed(ToolDialect::Hermes, text), (String::new(), calls));
}

#[test]
fn llama3_calls_are_parsed() {
    let calls = vec![
        call("add", json!({"a": 1})),
        call("say", json!({"text": "{"})),
    ];
    for text in [
        "{\"name\": \"add\", \"parameters\": {\"a\": 1}}; \
         {\"name\": \"say\", \"parameters\": {\"text\": \"{\"}}",
        "\n<|python_tag|>{\"type\": \"function\", \"name\": \"add\", \"parameters\": {\"a\": 1}}\n\
         {\"name\": \"say\", \"arguments\": {\"text\": \"{\"}};",
    ] {
        let parsed = parsed(ToolDialect::Llama3Json, text);
        assert_eq!(parsed, (String::new(), calls.clone()), "{text}");
    }
}

#[test]
fn mistral_calls_are_parsed() {
    let calls = vec![call("add", json!({"a": 1})), call("now", json!({}))];
    for text in [
        "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}}, {\"name\": \"now\", \
         \"arguments\": {}}]",
        "[TOOL_CALLS] [ {\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"} , \
         {\"name\": \"now\"} ]\n",
        "[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}",
        "[TOOL_CALLS]add{\"a\": 1}[TOOL_CALLS]now {}",
    ] {
        assert_eq!(
            parsed(ToolDialect::Mistral, text),
            (String::new(), calls.clone()),
            "{text}"
        );
    }
}

#[test]
fn qwen3_coder_calls_are_parsed_by_their_schema() {
    let text = "Sure.\n\n<tool_call>\n<function=say>\n<parameter=text>\n42\n\"é\" < b\n</param\n\
         </parameter>\n<parameter=more>\n[1, \"2\"]\n</parameter>\n</function>\n</tool_call>\n\
         <tool_call>\n<function=add>\n<parameter=a>1.5</parameter>\n<parameter=b>None</parameter>\n\
         </function>\n</tool_call><function=now></function>";
    let said = json!({"text": "42\n\"é\" < b\n</param", "more": [1, "2"]});
    let calls = vec![
        call("say", said),
        call("add", json!({"a": 1.5, "b": null})),
        call("now", json!({})),
    ];
    assert_eq!(
        parsed(ToolDialect::Qwen3Coder, text),
        ("Sure.".to_owned(), calls)
    );
}

#[test]
fn pythonic_calls_are_parsed() {
    let calls = vec![
        call("add", json!({"a": -1, "b": null})),
        call(
            "say",
            json!({"text": "it's, (\"]", "more": [1, {"k": [true]}]}),
        ),
        call("now", json!({})),
    ];
    let text = "[add(a=-1, b=None), say(text='it\\'s, (\"]', more = [1, {'k': (True,)}]),now()]";
    for text in [text.to_owned(), format!("<|python_start|>{text}")] {
        assert_eq!(
            parsed(ToolDialect::Pythonic, &text),
            (String::new(), calls.clone())
        );
    }
}

#[test]
fn what_is_no_call_is_content() {
    use ToolDialect::{Hermes, Llama3Json, Mistral, Pythonic, Qwen3Coder};
    for (dialect, text) in [
        (Hermes, "a <tool_call> b </tool_call> <tool_ca"),
        (
            Hermes,
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>\n",
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": [1]}</tool_call>",
        ),
        (Hermes, "<tool_call>\n{\"name\": \"add\", \"argum"),
        (Hermes, " \n "),
        (
            Llama3Json,
            "{\"city\": \"Paris\"}; {\"name\": \"add\", \"parameters\": {}}",
        ),
        (Llama3Json, "See {\"name\": \"add\", \"parameters\": {}}"),
        (Mistral, "[TOOL_CALLS][]"),
        (Mistral, "[TOOL_CALLS] nothing {}"),
        (Mistral, "[TOOL_CALLS][{\"name\": \"add\"; }]"),
        (
            Qwen3Coder,
            "<tool_call>\n<function=unknown>\n</function>\n</tool_call>",
        ),
        (Qwen3Coder, "<function add>"),
        (Pythonic, "[1] See [add(a=1)]"),
        (Pythonic, "[add(the numbers)]"),
        (Pythonic, "[]"),
    ] {
        assert_eq!(parsed(dialect, text), (text.to_owned(), Vec::new()));
    }
}

#[test]
fn a_call_in_a_failed_call_is_found() {
    let text = "<tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>";
    let expected = ("<tool_call>".to_owned(), vec![call("now", json!({}))]);
    assert_eq!(parsed(ToolDialect::Hermes, text), expected);
}

#[test]
fn text_after_calls_is_content() {
    for (dialect, text, content) in [
        (
            ToolDialect::Hermes,
            "<tool_call>{\"name\": \"now\"} so</tool_call>",
            " so</tool_call>",
        ),
        (
            ToolDialect::Hermes,
            "<tool_call>{\"name\": \"now\"}</tool_x",
            "</tool_x",
        ),
        (
            ToolDialect::Hermes,
            "<tool_call>{\"name\": \"now\"}</tool_call>\n\nDone.",
            "\n\nDone.",
        ),
        (
            ToolDialect::Llama3Json,
            "{\"name\": \"now\"}; Done.",
            "; Done.",
        ),
        (
            ToolDialect::Mistral,
            "[TOOL_CALLS][{\"name\": \"now\"}, {\"name\": \"x\"}]",
            ", {\"name\": \"x\"}]",
        ),
        (ToolDialect::Pythonic, "[now()] Done.", " Done."),
        (
            ToolDialect::Qwen3Coder,
            "<function=now>\n<param\n</function>",
            "\n<param\n</function>",
        ),
    ] {
        let calls = vec![call("now", json!({}))];
        assert_eq!(parsed(dialect, text), (content.to_owned(), calls), "{text}");
    }
}

#[test]
fn a_call_that_is_cut_off_has_the_arguments_so_far() {
    for (dialect, text, arguments) in [
        (
            ToolDialect::Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1",
            "{\"a\": 1",
        ),
        (ToolDialect::Pythonic, "[add(a=[1, ", "{\"a\": [1"),
        (
            ToolDialect::Qwen3Coder,
            "<function=say><parameter=text>\nlong\n</par",
            "{\"text\": \"long\\n</par",
        ),
    ] {
        let message = message(&options(dialect), text);
        assert_eq!(message.calls[0].1, arguments);
        assert_eq!(message.calls.len(), 1);
    }
}

#[test]
fn without_parallel_calls_only_the_first_is_reported() {
    let options = ParserOptions {
        parallel_tool_calls: false,
        ..options(ToolDialect::Hermes)
    };
    let text = "<tool_call>{\"name\": \"now\"}</tool_call>\n".repeat(2);
    let message = message(&options, &text);
    assert_eq!(message.calls, [("now".to_owned(), "{}".to_owned())]);
    assert_eq!(message.content, "");
    let mut parser = MessageParser::new(options);
    parser.push(&text);
    assert_eq!(parser.calls(), 2);
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
