//! Data files of chats, one row per line.

use std::path::Path;

use serde_json::json;

/// A row of one question and its answer, with the line break.
pub fn chat_row(question: &str, answer: &str) -> String {
    let messages = json!([
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]);
    json!({ "messages": messages }).to_string() + "\n"
}

/// Writes one row per question and answer.
pub fn write_chats(path: &Path, chats: &[(&str, &str)]) {
    let rows = chats
        .iter()
        .map(|(question, answer)| chat_row(question, answer));
    std::fs::write(path, rows.collect::<String>()).unwrap();
}
