//! A word-level diff of an answer against the expected one.

use serde::Serialize;

/// Maximum number of words of a compared text: the table grows with the square.
pub const MAX_WORDS: usize = 600;
/// Minimum share of common letters: below it, marks would cover the whole answer.
const MIN_SIMILARITY: f64 = 0.4;

/// A run of text that is common to both texts, or in one of them only.
#[derive(Debug, PartialEq, Serialize)]
pub struct DiffSpan {
    pub kind: DiffKind,
    pub text: String,
}

/// The texts that contain a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiffKind {
    /// In both texts.
    Same,
    /// Only in the answer.
    Extra,
    /// Only in the expected answer.
    Missing,
}

/// The spans of `answer` against `expected`; `None` if the texts are too long or too different for
/// a readable diff.
pub fn diff(answer: &str, expected: &str) -> Option<Vec<DiffSpan>> {
    let (a, e) = (words(answer), words(expected));
    if a.len().max(e.len()) > MAX_WORDS {
        return None;
    }
    let spans = spans(&a, &e, &common_lengths(&a, &e));
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
    let same = spans.iter().filter(|span| span.kind == DiffKind::Same);
    let same: usize = same.map(|span| letters(&span.text)).sum();
    let all = letters(answer) + letters(expected);
    (2.0 * same as f64 >= MIN_SIMILARITY * all as f64).then(|| join_differences(spans))
}

/// Joins differences that are separated by whitespace only, so that the words of each side are
/// adjacent.
fn join_differences(spans: Vec<DiffSpan>) -> Vec<DiffSpan> {
    let mut joined = Vec::new();
    let (mut extra, mut missing) = (String::new(), String::new());
    let mut spans = spans.into_iter().peekable();
    while let Some(span) = spans.next() {
        let differs_next = spans.peek().is_some_and(|next| next.kind != DiffKind::Same);
        match span.kind {
            DiffKind::Extra => extra.push_str(&span.text),
            DiffKind::Missing => missing.push_str(&span.text),
            DiffKind::Same if differs_next && span.text.trim().is_empty() => {
                extra.push_str(&span.text);
                missing.push_str(&span.text);
            }
            DiffKind::Same => {
                push_difference(&mut extra, &mut missing, &mut joined);
                joined.push(span);
            }
        }
    }
    push_difference(&mut extra, &mut missing, &mut joined);
    joined
}

/// Appends a difference and clears its texts. Whitespace alone is not marked as different.
fn push_difference(extra: &mut String, missing: &mut String, spans: &mut Vec<DiffSpan>) {
    let (extra, missing) = (std::mem::take(extra), std::mem::take(missing));
    if !extra.is_empty() {
        let kind = if extra.trim().is_empty() {
            DiffKind::Same
        } else {
            DiffKind::Extra
        };
        spans.push(DiffSpan { kind, text: extra });
    }
    if !missing.trim().is_empty() {
        spans.push(DiffSpan {
            kind: DiffKind::Missing,
            text: missing,
        });
    }
}

/// Splits a text into words, runs of whitespace, and single characters of anything else.
fn words(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        _ if c.is_alphanumeric() || c == '_' => 0,
        _ if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut previous = None;
    for (at, c) in text.char_indices() {
        if previous.is_some_and(|previous| previous != class(c) || previous == 2) {
            words.push(&text[start..at]);
            start = at;
        }
        previous = Some(class(c));
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

/// Lengths of the longest common subsequences of `a[i..]` and `e[j..]`, at `[i][j]`.
fn common_lengths(a: &[&str], e: &[&str]) -> Vec<Vec<u16>> {
    let mut lengths = vec![vec![0; e.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..e.len()).rev() {
            lengths[i][j] = if a[i] == e[j] {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    lengths
}

/// Walks a longest common subsequence from the front; neighbouring words of one kind form a span.
fn spans(a: &[&str], e: &[&str], common: &[Vec<u16>]) -> Vec<DiffSpan> {
    let (mut i, mut j) = (0, 0);
    let mut spans: Vec<DiffSpan> = Vec::new();
    while i < a.len() || j < e.len() {
        let (kind, word) = if i < a.len() && j < e.len() && a[i] == e[j] {
            (i, j) = (i + 1, j + 1);
            (DiffKind::Same, a[i - 1])
        } else if j == e.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            (DiffKind::Extra, a[i - 1])
        } else {
            j += 1;
            (DiffKind::Missing, e[j - 1])
        };
        match spans.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(word),
            _ => spans.push(DiffSpan {
                kind,
                text: word.to_owned(),
            }),
        }
    }
    spans
}
