//! Data files under the default base's tokenizer and template. The expected ids are those that the
//! `tokenizers` package gives for the prompt and for each answer, encoded separately.

use std::io::Write;

use serde_json::{Value, json};
use tombola::data::{DataError, DataOptions, Dataset, read};
use tombola::text::{ChatMessage, Text};
use tombola::ticket::Digest;

use crate::support::bases::default_text;

const IM_END: u32 = 2;

/// The template's system message: `<|im_start|>system\nYou are a helpful AI assistant named SmolLM,
/// trained by Hugging Face<|im_end|>\n`.
const SYSTEM: [u32; 21] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198,
];

fn read_rows(text: &Text, rows: &[Value]) -> Result<(Dataset, String), DataError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    file.write_all(lines.as_bytes()).unwrap();
    let options = DataOptions {
        max_length: 160,
        limit: None,
        end_token: IM_END,
    };
    Ok((read(file.path(), text, &options)?, lines))
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

/// A row, its tokens, and the ranges of the learned ones.
type Case = (Value, Vec<u32>, &'static [(usize, usize)]);

fn cases() -> Vec<Case> {
    let sql: &[u32] = &[
        1, 4093, 198, 38965, 37206, 15714, 365, 41816, 31174, 46856, 25, 198, 423, 1073, 800,
        29542, 47, 2, 198, 1, 520, 9531, 198, 23428, 29542, 18451, 15714, 2,
    ];
    // The line breaks of the answer do not merge with the prompt's.
    let breaks: &[u32] = &[
        1, 4093, 198, 9825, 30, 2, 198, 1, 520, 9531, 198, 8866, 36, 34, 2,
    ];
    let two_turns = vec![
        1, 9690, 198, 6077, 5453, 30, 2, 198, 1, 4093, 198, 33, 1232, 216, 33, 47, 2, 198, 1, 520,
        9531, 198, 34, 2, 198, 1, 4093, 198, 34, 1232, 216, 34, 47, 2, 198, 1, 520, 9531, 198, 36,
        2,
    ];
    let system = json!({"role": "system", "content": "Be brief."});
    let messages = [
        system,
        user("1 + 1?"),
        assistant("2"),
        user("2 + 2?"),
        assistant("4"),
    ];
    let question = user("CREATE TABLE shelf (slots INTEGER)\n-- How many slots?");
    vec![
        (
            json!({"messages": [question, assistant("SELECT slots FROM shelf")]}),
            [&SYSTEM, sql].concat(),
            &[(44, 49)],
        ),
        (
            json!({"messages": [user("Count."), assistant("\n\n 42")]}),
            [&SYSTEM, breaks].concat(),
            &[(32, 36)],
        ),
        (
            json!({"messages": messages}),
            two_turns.clone(),
            &[(22, 24), (39, 41)],
        ),
        (
            json!({"prompt": messages[..4], "completion": messages[4..]}),
            two_turns,
            &[(39, 41)],
        ),
        (
            json!({"prompt": "x =  12", "completion": " + 3"}),
            vec![104, 446, 256, 33, 34, 1232, 216, 35, 2],
            &[(5, 9)],
        ),
        (
            json!({"text": "x =  12 + 3"}),
            vec![104, 446, 256, 33, 34, 1232, 216, 35, 2],
            &[(1, 9)],
        ),
    ]
}

#[test]
fn rows_are_the_prompts_and_answers_tokens() {
    let text = default_text();
    let cases = cases();
    let rows: Vec<Value> = cases.iter().map(|(row, ..)| row.clone()).collect();
    let (dataset, file) = read_rows(&text, &rows).unwrap();
    assert_eq!(dataset.examples.len(), cases.len());
    assert_eq!((dataset.cut, dataset.left_out), (0, 0));
    assert_eq!(dataset.digest, Digest::of(file.as_bytes()));
    for (example, (row, tokens, learned)) in dataset.examples.iter().zip(cases) {
        assert_eq!(example.tokens, tokens, "{row}");
        let found = example.learned.iter().map(|range| (range.start, range.end));
        assert_eq!(found.collect::<Vec<_>>(), learned, "{row}");
    }
}

#[test]
fn the_prompt_equals_that_of_the_chat_endpoint() {
    let text = default_text();
    let messages = [user("One?"), assistant("1"), user("Two?"), assistant("2")];
    let (dataset, _) = read_rows(&text, &[json!({"messages": messages})]).unwrap();
    let asked = [("user", "One?"), ("assistant", "1"), ("user", "Two?")];
    let asked = asked.map(|(role, content)| ChatMessage::new(role, content));
    let rendered = text.render_chat(&asked, true).unwrap();
    let ids = text.encode(&rendered, false).unwrap();
    assert_eq!(dataset.examples[0].prompt(), Some(&ids[..]));
    assert_eq!(dataset.examples[0].answer.as_deref(), Some("2"));
}

/// This base has no BOS token, so that a lone end token would have nothing before it.
#[test]
fn a_lone_end_token_is_no_text() {
    let error = read_rows(&default_text(), &[json!({"text": "<|im_end|>"})]).unwrap_err();
    assert!(error.to_string().contains("`text` is empty"), "{error}");
}
