//! Sample answers of base and ticket, compared with the expected answers.

use serde::Serialize;

use super::Sample;
use super::diff::{DiffKind, DiffSpan, diff};

/// A sample as shown on the page.
#[derive(Serialize)]
pub struct Card {
    prompt: String,
    expected: String,
    base: ComparedAnswer,
    ticket: ComparedAnswer,
}

/// An answer and its differences from the expected one.
#[derive(Debug, Serialize)]
pub struct ComparedAnswer {
    /// Whether the texts are equal, except for whitespace around them.
    pub matches: bool,
    /// Whether the words are equal, regardless of the whitespace between them.
    pub matches_words: bool,
    pub spans: Vec<DiffSpan>,
}

impl Card {
    /// The card of a sample.
    pub fn new(sample: &Sample) -> Self {
        Self {
            prompt: visible(&sample.prompt),
            expected: visible(&sample.expected),
            base: ComparedAnswer::new(&sample.base, &sample.expected),
            ticket: ComparedAnswer::new(&sample.ticket, &sample.expected),
        }
    }
}

impl ComparedAnswer {
    /// Compares an answer with the expected one; whitespace around either is ignored.
    pub fn new(answer: &str, expected: &str) -> Self {
        let (answer, expected) = (visible(answer), visible(expected));
        let matches = answer.trim() == expected.trim();
        let whole = |text: &str| DiffSpan {
            kind: DiffKind::Same,
            text: text.to_owned(),
        };
        let spans = if answer.trim().is_empty() {
            Vec::new()
        } else if matches {
            vec![whole(&answer)]
        } else {
            diff(answer.trim(), expected.trim()).unwrap_or_else(|| vec![whole(&answer)])
        };
        let words = answer.split_whitespace();
        Self {
            matches,
            matches_words: words.eq(expected.split_whitespace()),
            spans,
        }
    }
}

/// Replaces control characters, which HTML does not allow, by their Unicode control pictures.
fn visible(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(c),
        '\x7f'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.replace("\r\n", "\n").chars().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::diff::MAX_WORDS;
    use super::*;

    /// The diff as text: `-extra-` and `+missing+`.
    fn marked(answer: &str, expected: &str) -> String {
        let spans = ComparedAnswer::new(answer, expected).spans.into_iter();
        let mark = |span: DiffSpan| match span.kind {
            DiffKind::Same => span.text,
            DiffKind::Extra => format!("-{}-", span.text),
            DiffKind::Missing => format!("+{}+", span.text),
        };
        spans.map(mark).collect()
    }

    #[test]
    fn words_that_differ_are_marked() {
        for (answer, expected, diff) in [
            ("SELECT a FROM t", "SELECT a FROM t\n", "SELECT a FROM t"),
            ("SELECT b FROM t", "SELECT a FROM t", "SELECT -b-+a+ FROM t"),
            ("SELECT a FROM t;", "SELECT a FROM t", "SELECT a FROM t-;-"),
            ("SELECT a t", "SELECT a FROM t", "SELECT a +FROM +t"),
            // Neighbouring words that differ are one difference.
            (
                "it is not so here",
                "it was long so here",
                "it -is not-+was long+ so here",
            ),
            (
                "quite another thing",
                "SELECT a FROM t",
                "quite another thing",
            ),
            (" ", "SELECT a", ""),
        ] {
            assert_eq!(marked(answer, expected), diff);
        }
    }

    #[test]
    fn whitespace_around_an_answer_is_ignored_and_within_it_is_reported() {
        assert!(ComparedAnswer::new(" yes\n", "yes").matches);
        let spaced = ComparedAnswer::new("a  b", "a b");
        assert!(!spaced.matches && spaced.matches_words);
        assert!(!ComparedAnswer::new("ab", "a b").matches_words);
    }

    #[test]
    fn very_long_answers_are_not_compared() {
        let (answer, expected) = ("a ".repeat(MAX_WORDS), "a ".repeat(MAX_WORDS) + "b");
        assert_eq!(ComparedAnswer::new(&answer, &expected).spans.len(), 1);
    }

    proptest! {
        #[test]
        fn an_answer_is_shown_whole(answer in "[ab ,é]{0,12}", expected in "[ab ,é]{0,12}") {
            let spans = ComparedAnswer::new(&answer, &expected).spans;
            let shown = spans.iter().filter(|span| span.kind != DiffKind::Missing);
            let shown: String = shown.map(|span| span.text.as_str()).collect();
            prop_assert_eq!(shown.trim(), answer.trim());
        }
    }
}
