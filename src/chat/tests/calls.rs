//! Calls in every dialect, and texts that are none.

use serde_json::json;

use super::*;

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
         </parameter>\n<parameter=more>\n[1, \"</parameter>\"]\n</parameter>\n</function>\n\
         </tool_call>\n\
         <tool_call>\n<function=add>\n<parameter=a>1.5</parameter>\n<parameter=b>None</parameter>\n\
         </function>\n</tool_call><function=now></function>";
    let said = json!({"text": "42\n\"é\" < b\n</param", "more": [1, "</parameter>"]});
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
