//! Rows that are refused, and the messages.

use super::*;

fn refusal(template: &str, row: Value) -> String {
    let error = parse_with(template, OPTIONS, &[row])
        .unwrap_err()
        .to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    let problem = error.strip_prefix("rows.jsonl, line 1: ");
    problem.unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn a_template_that_does_not_render_turn_by_turn_is_refused() {
    // Newest first.
    let template = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}";
    let error = refusal(template, chat(&[("user", "p"), ("assistant", "q")]));
    assert!(
        error.contains("turn by turn") && error.contains("message 2"),
        "{error}"
    );
    // The template marks only the last question.
    let template = "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}\
        {% for m in messages %}{{ m.content }}{% if m.content == asked[-1].content %}!{% endif %}\
        </s>{% endfor %}";
    let conversation = [
        ("user", "p"),
        ("assistant", "q"),
        ("user", "r"),
        ("assistant", "t"),
    ];
    assert!(one(template, chat(&conversation[..2])).answer.is_some());
    let error = refusal(template, chat(&conversation));
    assert!(error.contains("turn by turn"), "{error}");
}

#[test]
fn the_first_malformed_row_is_named_and_rows_beyond_the_limit_are_not_checked() {
    let file = "{\"text\": \"a\"}\n\n{\"text\": 1}\nnonsense";
    let text = chat_text(TURNS);
    let error = parse(Path::new("f"), file.as_bytes(), &text, &OPTIONS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f, line 3: `text` is a number, expected a string"
    );
    let options = DataOptions {
        limit: Some(1),
        ..OPTIONS
    };
    assert!(parse(Path::new("f"), file.as_bytes(), &text, &options).is_ok());
}

#[test]
fn files_without_rows_are_refused() {
    for file in ["", "\n \r\n", "\u{feff}"] {
        let error = parse(Path::new("f"), file.as_bytes(), &chat_text(TURNS), &OPTIONS);
        assert!(error.unwrap_err().to_string().contains("holds no row"));
    }
    let missing = read(Path::new("/no/such/file"), &chat_text(TURNS), &OPTIONS);
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("cannot read /no/such/file: ")
    );
}

#[test]
fn errors_say_what_is_wrong_with_a_row() {
    let user = json!({"role": "user", "content": "p"});
    for (row, expected) in [
        (json!([1]), "expected a JSON object, found a list"),
        (json!({"question": "p"}), "found none of them"),
        (
            json!({"text": "a", "messages": []}),
            "both `messages` and `text`",
        ),
        (json!({"prompt": "p"}), "`completion` is missing"),
        (json!({"completion": "p"}), "`prompt` is missing"),
        (
            json!({"prompt": "p", "completion": 1}),
            "`completion` is a number, expected a string",
        ),
        (
            json!({"prompt": "p", "completion": " "}),
            "`completion` is empty",
        ),
        (
            json!({"prompt": [user], "completion": "q"}),
            "`completion` is a string, expected a list of messages",
        ),
        (
            json!({"prompt": [user], "completion": [user]}),
            "`completion` holds no assistant message",
        ),
        (json!({"text": ""}), "`text` is empty"),
        (
            json!({"messages": {}}),
            "`messages` is an object, expected a list of messages",
        ),
        (
            json!({"messages": ["p"]}),
            "`messages[0]` is a string, expected a message",
        ),
        (
            json!({"messages": [{"content": "p"}]}),
            "`messages[0].role` is missing",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "`messages[0].content` is missing",
        ),
        (
            json!({"messages": [user, {"role": "assistant", "content": ["q"]}]}),
            "`messages[1].content` is a list, expected a string",
        ),
        (
            chat(&[("user", "p"), ("assistant", "\n")]),
            "`messages[1].content` is empty",
        ),
        (chat(&[]), "`messages` holds no assistant message"),
        (
            chat(&[("user", "p")]),
            "`messages` holds no assistant message",
        ),
        (
            chat(&[("assistant", "p")]),
            "message 1 is from the assistant",
        ),
    ] {
        let error = refusal(TURNS, row);
        assert!(error.contains(expected), "{error}");
    }
    for (line, expected) in [
        (
            &b"{\"text\": \"a\xff\"}"[..],
            "not UTF-8 at byte 12 of the line",
        ),
        (b"{\"text\": }", "not JSON: expected value at column 10"),
    ] {
        let error = parse(Path::new("f"), line, &chat_text(TURNS), &OPTIONS).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn errors_quote_the_template() {
    let row = || chat(&[("user", "p"), ("assistant", "q")]);
    let error = refusal("{{ raise_exception('no such role') }}", row());
    assert!(error.contains("no such role"), "{error}");
    let error = refusal("{{ messages[0].content.nothing.at_all }}", row());
    assert!(error.contains("template failed"), "{error}");
    // The template leaves out the question.
    let silent = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}";
    let error = refusal(silent, row());
    assert!(
        error.contains("nothing before it renders to a prompt"),
        "{error}"
    );
    let deaf = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    let error = refusal(deaf, row());
    assert!(error.contains("renders nothing for message 2"), "{error}");
    let error = refusal(
        TURNS,
        json!({"prompt": [], "completion": turns(&[("assistant", "q")])}),
    );
    assert!(error.contains("message 1"), "{error}");
}
