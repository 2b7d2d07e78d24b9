//! Rows on the default base's real tokenizer and template. The ids are the `tokenizers` package's,
//! of the prompt and of each answer by itself.

use std::fs::File;
use std::io::{BufReader, Write};

use candle_core::quantized::gguf_file::Content;
use serde_json::{Value, json};
use tombola::data::{DataError, DataOptions, Dataset, read};
use tombola::text::{ChatMessage, Text};
use tombola::ticket::Digest;

use crate::common;

const IM_END: u32 = 2;

/// `<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n`
const SYSTEM: [u32; 21] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198,
];

fn text() -> Text {
    let file = File::open(common::default_gguf_path()).expect("the default base's GGUF");
    let content = Content::read(&mut BufReader::new(file)).expect("a GGUF header");
    Text::from_gguf(&content).expect("a tokenizer")
}

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

/// A row, its tokens, and where what is learned of them begins and ends.
type Case = (Value, Vec<u32>, &'static [(usize, usize)]);

fn cases() -> Vec<Case> {
    let sql: &[u32] = &[
        1, 4093, 198, 38965, 37206, 15714, 365, 41816, 31174, 46856, 25, 198, 423, 1073, 800,
        29542, 47, 2, 198, 1, 520, 9531, 198, 23428, 29542, 18451, 15714, 2,
    ];
    // The line breaks of the answer do not grow together with the prompt's.
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
    let text = text();
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
fn the_prompt_is_what_the_chat_endpoint_would_be_asked_with() {
    let text = text();
    let messages = [user("One?"), assistant("1"), user("Two?"), assistant("2")];
    let (dataset, _) = read_rows(&text, &[json!({"messages": messages})]).unwrap();
    let asked = [("user", "One?"), ("assistant", "1"), ("user", "Two?")];
    let asked = asked.map(|(role, content)| ChatMessage::new(role, content));
    let rendered = text.render_chat(&asked, true).unwrap();
    let ids = text.encode(&rendered, false).unwrap();
    assert_eq!(dataset.examples[0].prompt(), Some(&ids[..]));
    assert_eq!(dataset.examples[0].answer.as_deref(), Some("2"));
}

/// This base begins no plain text, so that an end token by itself would be the first.
#[test]
fn an_end_token_by_itself_is_no_text() {
    let error = read_rows(&text(), &[json!({"text": "<|im_end|>"})]).unwrap_err();
    assert!(error.to_string().contains("`text` is empty"), "{error}");
}
