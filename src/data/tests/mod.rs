//! Encoding of rows with small tokenizers: all bytes, `<s>`, `</s>`, `<tool>`, and the merges
//! `he`, `ll`, `12`, `123`.

mod refusals;

use serde_json::{Value, json};

use super::*;
use crate::text::tests::chat_text;

/// A template that writes the first letter of each role and ends a turn with `</s>` and a newline.
const TURNS: &str = "{% for m in messages %}{{ m.role[0] + ':' + m.content + '</s>\n' }}\
    {% endfor %}{% if add_generation_prompt %}a:{% endif %}";

const OPTIONS: DataOptions = DataOptions {
    max_length: 1000,
    limit: None,
    end_token: 1,
};

fn parse_with(template: &str, options: DataOptions, rows: &[Value]) -> Result<Dataset, DataError> {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let file = lines.join("\n");
    parse(
        Path::new("rows.jsonl"),
        file.as_bytes(),
        &chat_text(template),
        &options,
    )
}

fn one(template: &str, row: Value) -> Example {
    let mut dataset = parse_with(template, OPTIONS, &[row]).unwrap();
    assert_eq!(dataset.examples.len(), 1);
    dataset.examples.remove(0)
}

fn chat(messages: &[(&str, &str)]) -> Value {
    json!({"messages": turns(messages)})
}

fn turns(messages: &[(&str, &str)]) -> Value {
    let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    messages.iter().map(message).collect()
}

/// The tokens as text, with the learned ones in brackets.
fn spelled(example: &Example) -> String {
    let text = chat_text("");
    let spell = |ids: &[u32]| -> String {
        let tokens: Vec<String> = ids.iter().map(|&id| text.token_text(id)).collect();
        tokens.join("|")
    };
    let mut out = String::new();
    let mut at = 0;
    for range in &example.learned {
        out += &spell(&example.tokens[at..range.start]);
        out += &format!("[{}]", spell(&example.tokens[range.clone()]));
        at = range.end;
    }
    out + &spell(&example.tokens[at..])
}

#[test]
fn the_answer_of_a_chat_and_its_end_are_learned() {
    let example = one(TURNS, chat(&[("user", "hello"), ("assistant", "ok")]));
    assert_eq!(spelled(&example), "u|:|he|ll|o|</s>|\n|a|:[o|k|</s>]");
    assert_eq!(example.answer.as_deref(), Some("ok"));
    assert_eq!((example.line, example.learned_tokens()), (1, 3));
    assert_eq!(example.prompt(), Some(&example.tokens[..9]));
}

#[test]
fn every_answer_of_a_chat_is_learned_and_nothing_else() {
    let example = one(
        TURNS,
        chat(&[
            ("system", "s"),
            ("user", "p"),
            ("assistant", "q"),
            ("user", "r"),
            ("assistant", "t"),
            ("user", "left out"),
        ]),
    );
    assert_eq!(
        spelled(&example),
        "s|:|s|</s>|\n|u|:|p|</s>|\n|a|:[q|</s>]\n|u|:|r|</s>|\n|a|:[t|</s>]"
    );
    assert_eq!(example.answer.as_deref(), Some("t"));
    let last = example.learned[1].start;
    assert_eq!(example.prompt(), Some(&example.tokens[..last]));
}

#[test]
fn no_token_crosses_the_seam_of_prompt_and_answer() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let example = one(template, chat(&[("user", "x1"), ("assistant", "23")]));
    assert_eq!(spelled(&example), "x|1[2|3]");
    // Nor does a token cross the end of a turn, after any number of turns.
    let example = one(
        template,
        chat(&[
            ("user", "1"),
            ("assistant", "2"),
            ("user", "3"),
            ("assistant", "4"),
        ]),
    );
    assert_eq!(spelled(&example), "1[2]3[4]");
    let example = one(template, json!({"prompt": "x1", "completion": "23"}));
    assert_eq!(spelled(&example), "<s>|x|1[2|3|</s>]");
}

#[test]
fn without_an_end_token_the_whole_answer_is_learned() {
    let template = "{% for m in messages %}{{ m.role + '\n' + m.content + '\n' }}{% endfor %}\
        {% if add_generation_prompt %}assistant\n{% endif %}";
    let example = one(
        template,
        chat(&[
            ("user", "p"),
            ("assistant", "q"),
            ("user", "r"),
            ("assistant", "t"),
        ]),
    );
    let learned = example.learned.iter();
    let learned: Vec<_> = learned
        .map(|range| &example.tokens[range.clone()])
        .collect();
    let text = chat_text(template);
    let expected = ["q\n", "t\n"].map(|answer| text.encode(answer, false).unwrap());
    assert_eq!(learned, expected.each_ref());
}

#[test]
fn a_generation_prompt_that_the_answer_does_not_repeat_is_left_out() {
    // As in templates that prompt for reasoning and drop it from the history.
    let template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + '</s>' }}{% endfor %}\
        {% if add_generation_prompt %}a:<tool>{% endif %}";
    let example = one(template, chat(&[("user", "p"), ("assistant", "q")]));
    assert_eq!(spelled(&example), "u|:|p|</s>[a|:|q|</s>]");
}

#[test]
fn a_template_may_end_a_conversation_differently_from_a_turn() {
    // As in Phi-3: one more token after the end of a conversation.
    let template = "{% for m in messages %}{{ m.role[0] + m.content + '</s>\n' }}{% endfor %}\
        {{ 'a' if add_generation_prompt else '<s>' }}";
    let conversation = [
        ("user", "p"),
        ("assistant", "q"),
        ("user", "r"),
        ("assistant", "t"),
    ];
    let example = one(template, chat(&conversation));
    assert_eq!(
        spelled(&example),
        "u|p|</s>|\n|a[q|</s>]\n|u|r|</s>|\n|a[t|</s>]"
    );
    // As in Qwen3: only the last answer is marked.
    let template = "{% for m in messages %}\
        {{ m.role[0] + ('<tool>' if loop.last and m.role == 'assistant' else '') \
        + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}";
    let example = one(template, chat(&conversation));
    assert_eq!(
        spelled(&example),
        "u|p|</s>|a[q|</s>]u|r|</s>|a[<tool>|t|</s>]"
    );
}

#[test]
fn the_completion_of_a_prompt_is_learned() {
    let example = one(TURNS, json!({"prompt": "hello ", "completion": "12"}));
    assert_eq!(spelled(&example), "<s>|he|ll|o| [12|</s>]");
    assert_eq!(example.answer.as_deref(), Some("12"));
    let text = chat_text(TURNS);
    assert_eq!(
        example.prompt().unwrap(),
        text.encode("hello ", true).unwrap()
    );
    let ended = one(TURNS, json!({"prompt": "hello ", "completion": "12</s>"}));
    assert_eq!(ended.tokens, example.tokens);
}

#[test]
fn only_the_answers_of_a_completion_of_messages_are_learned() {
    let example = one(
        TURNS,
        json!({
            "prompt": turns(&[("user", "p"), ("assistant", "q"), ("user", "r")]),
            "completion": turns(&[("assistant", "t")]),
        }),
    );
    assert_eq!(
        spelled(&example),
        "u|:|p|</s>|\n|a|:|q|</s>|\n|u|:|r|</s>|\n|a|:[t|</s>]"
    );
}

#[test]
fn a_plain_text_is_learned_except_its_first_token() {
    let example = one(TURNS, json!({"text": "hello"}));
    assert_eq!(spelled(&example), "<s>[he|ll|o|</s>]");
    assert_eq!((example.answer.as_ref(), example.prompt()), (None, None));
}

#[test]
fn tool_calls_may_replace_an_answer() {
    let template = "{% for m in messages %}{{ m.role[0] + m.content }}\
        {% for c in m.tool_calls %}<tool>{{ c }}{% endfor %}</s>{% endfor %}\
        {% if add_generation_prompt %}a{% endif %}";
    let row = json!({"messages": [
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": null, "tool_calls": ["f"]},
    ]});
    let example = one(template, row);
    assert_eq!(spelled(&example), "u|p|</s>|a[<tool>|f|</s>]");
    assert_eq!(example.answer.as_deref(), Some("<tool>f"));
}

#[test]
fn long_rows_are_cut_and_dropped_if_nothing_to_learn_remains() {
    let rows = [
        chat(&[
            ("user", "p"),
            ("assistant", "q"),
            ("user", "r"),
            ("assistant", "tt"),
        ]),
        chat(&[("user", "a long question"), ("assistant", "t")]),
        json!({"text": "ab"}),
    ];
    let cut_to = |max_length| {
        let options = DataOptions {
            max_length,
            ..OPTIONS
        };
        parse_with(TURNS, options, &rows).unwrap()
    };
    let spell = |dataset: &Dataset| dataset.examples.iter().map(spelled).collect::<Vec<_>>();
    let lines = |dataset: &Dataset| dataset.examples.iter().map(|e| e.line).collect::<Vec<_>>();

    let whole = "u|:|p|</s>|\n|a|:[q|</s>]\n|u|:|r|</s>|\n|a|:[t|t|</s>]";
    let dataset = cut_to(20);
    assert_eq!((dataset.cut, dataset.left_out), (1, 1));
    assert_eq!(spell(&dataset), [whole, "<s>[a|b|</s>]"]);
    assert_eq!(lines(&dataset), [1, 3]);

    // The beginning of the last answer stays.
    let dataset = cut_to(19);
    assert!(
        spell(&dataset)[0].ends_with("|a|:[t|t]"),
        "{:?}",
        spell(&dataset)
    );
    assert_eq!(dataset.examples[0].answer.as_deref(), Some("tt"));

    // If the last answer is cut off, the one before becomes the last.
    let dataset = cut_to(12);
    assert_eq!(spell(&dataset)[0], "u|:|p|</s>|\n|a|:[q|</s>]\n|u|:");
    assert_eq!(dataset.examples[0].answer.as_deref(), Some("q"));
    assert_eq!(dataset.examples[0].prompt().map(<[u32]>::len), Some(7));

    let error = parse_with(
        TURNS,
        DataOptions {
            max_length: 1,
            ..OPTIONS
        },
        &rows,
    )
    .unwrap_err();
    assert!(error.to_string().contains("first 1 tokens"), "{error}");
}

#[test]
fn lines_are_counted_as_an_editor_counts_them() {
    let file = "\u{feff}\r\n  {\"text\": \"a\"}\r\n\n\t\n{\"text\": \"b\"}";
    let read = |limit| {
        let options = DataOptions { limit, ..OPTIONS };
        parse(Path::new("f"), file.as_bytes(), &chat_text(TURNS), &options).unwrap()
    };
    let dataset = read(None);
    let lines: Vec<_> = dataset.examples.iter().map(|e| e.line).collect();
    assert_eq!(lines, [2, 5]);
    assert_eq!(dataset.digest, Digest::of(file.as_bytes()));
    let first = read(Some(1));
    assert_eq!(first.examples, dataset.examples[..1]);
    assert_eq!(first.digest, dataset.digest);
}

#[test]
fn nulls_and_unknown_fields_are_ignored() {
    let row = json!({"messages": null, "prompt": "p", "completion": "q", "text": null, "id": 7});
    assert_eq!(spelled(&one(TURNS, row)), "<s>|p[q|</s>]");
    let mut row = chat(&[("user", "p"), ("assistant", "q")]);
    row["prompt"] = "the question once more".into();
    assert_eq!(spelled(&one(TURNS, row)), "u|:|p|</s>|\n|a|:[q|</s>]");
}

#[test]
fn an_empty_prompt_needs_a_begin_token() {
    let row = json!({"prompt": "", "completion": "q"});
    assert_eq!(spelled(&one(TURNS, row)), "<s>[q|</s>]");
}
