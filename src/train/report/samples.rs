//! Answers beside what was wanted, with the words that differ.

use serde::Serialize;

use super::Sample;

/// Pieces of an answer beyond which its words are not compared: the table grows with the square.
const MOST: usize = 600;
/// The share of common words below which marks would cover the answer and tell nothing.
const ALIKE: f64 = 0.4;

/// A sample, ready to be shown.
#[derive(Serialize)]
pub struct Card {
    prompt: String,
    wanted: String,
    base: Answer,
    ticket: Answer,
}

/// An answer as pieces that are in what was wanted, or not.
#[derive(Debug, Serialize)]
pub struct Answer {
    pub as_wanted: bool,
    /// Whether the words are those that were wanted.
    pub but_for_space: bool,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Piece {
    pub kind: Kind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Same,
    /// In the answer, and not wanted there.
    Extra,
    /// Wanted there, and not in the answer.
    Missing,
}

impl Card {
    pub fn new(sample: &Sample) -> Self {
        Self {
            prompt: visible(&sample.prompt),
            wanted: visible(&sample.wanted),
            base: Answer::new(&sample.base, &sample.wanted),
            ticket: Answer::new(&sample.ticket, &sample.wanted),
        }
    }
}

impl Answer {
    /// Compares an answer with what was wanted; space around either does not count.
    pub fn new(answer: &str, wanted: &str) -> Self {
        let (answer, wanted) = (visible(answer), visible(wanted));
        let as_wanted = answer.trim() == wanted.trim();
        let whole = |text: &str| Piece {
            kind: Kind::Same,
            text: text.to_owned(),
        };
        let pieces = if answer.trim().is_empty() {
            Vec::new()
        } else if as_wanted {
            vec![whole(&answer)]
        } else {
            compared(answer.trim(), wanted.trim()).unwrap_or_else(|| vec![whole(&answer)])
        };
        let words = answer.split_whitespace();
        Self {
            as_wanted,
            but_for_space: words.eq(wanted.split_whitespace()),
            pieces,
        }
    }
}

/// The answer with its differences from what was wanted, where those are worth a look.
fn compared(answer: &str, wanted: &str) -> Option<Vec<Piece>> {
    let (a, w) = (words(answer), words(wanted));
    if a.len().max(w.len()) > MOST {
        return None;
    }
    let common = common_lengths(&a, &w);
    let pieces = walk(&a, &w, &common);
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
    let same = pieces.iter().filter(|piece| piece.kind == Kind::Same);
    let same: usize = same.map(|piece| letters(&piece.text)).sum();
    let all = letters(answer) + letters(wanted);
    (2.0 * same as f64 >= ALIKE * all as f64).then(|| joined(pieces))
}

/// Joins differences that only space parts, each side's words together.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all = Vec::new();
    let (mut extra, mut missing) = (String::new(), String::new());
    let mut pieces = pieces.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        let differs = pieces.peek().is_some_and(|next| next.kind != Kind::Same);
        match piece.kind {
            Kind::Extra => extra.push_str(&piece.text),
            Kind::Missing => missing.push_str(&piece.text),
            Kind::Same if differs && piece.text.trim().is_empty() => {
                extra.push_str(&piece.text);
                missing.push_str(&piece.text);
            }
            Kind::Same => {
                close(&mut extra, &mut missing, &mut all);
                all.push(piece);
            }
        }
    }
    close(&mut extra, &mut missing, &mut all);
    all
}

/// Ends a difference. Space alone is none that could be seen.
fn close(extra: &mut String, missing: &mut String, pieces: &mut Vec<Piece>) {
    let (extra, missing) = (std::mem::take(extra), std::mem::take(missing));
    if !extra.is_empty() {
        let kind = match extra.trim() {
            "" => Kind::Same,
            _ => Kind::Extra,
        };
        pieces.push(Piece { kind, text: extra });
    }
    if !missing.trim().is_empty() {
        let kind = Kind::Missing;
        pieces.push(Piece {
            kind,
            text: missing,
        });
    }
}

/// Words, runs of space, and every other sign alone.
fn words(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        _ if c.is_alphanumeric() || c == '_' => 0,
        _ if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (at, c) in text.char_indices() {
        if before.is_some_and(|before| before != kind(c) || before == 2) {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(kind(c));
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

/// How long the longest common subsequence of `a[i..]` and `w[j..]` is.
fn common_lengths(a: &[&str], w: &[&str]) -> Vec<Vec<u16>> {
    let mut lengths = vec![vec![0; w.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..w.len()).rev() {
            lengths[i][j] = if a[i] == w[j] {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    lengths
}

fn walk(a: &[&str], w: &[&str], common: &[Vec<u16>]) -> Vec<Piece> {
    let (mut i, mut j) = (0, 0);
    let mut pieces: Vec<Piece> = Vec::new();
    while i < a.len() || j < w.len() {
        let (kind, word) = if i < a.len() && j < w.len() && a[i] == w[j] {
            (i, j) = (i + 1, j + 1);
            (Kind::Same, a[i - 1])
        } else if j == w.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            (Kind::Extra, a[i - 1])
        } else {
            j += 1;
            (Kind::Missing, w[j - 1])
        };
        match pieces.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(word),
            _ => pieces.push(Piece {
                kind,
                text: word.to_owned(),
            }),
        }
    }
    pieces
}

/// Control characters, which HTML has no place for, as their pictures.
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

    use super::*;

    /// `-extra-` and `+missing+`.
    fn marked(answer: &str, wanted: &str) -> String {
        let pieces = Answer::new(answer, wanted).pieces.into_iter();
        let mark = |piece: Piece| match piece.kind {
            Kind::Same => piece.text,
            Kind::Extra => format!("-{}-", piece.text),
            Kind::Missing => format!("+{}+", piece.text),
        };
        pieces.map(mark).collect()
    }

    #[test]
    fn words_that_differ_are_marked() {
        for (answer, wanted, expected) in [
            ("SELECT a FROM t", "SELECT a FROM t\n", "SELECT a FROM t"),
            ("SELECT b FROM t", "SELECT a FROM t", "SELECT -b-+a+ FROM t"),
            ("SELECT a FROM t;", "SELECT a FROM t", "SELECT a FROM t-;-"),
            ("SELECT a t", "SELECT a FROM t", "SELECT a +FROM +t"),
            // A difference over several words is one.
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
            assert_eq!(marked(answer, wanted), expected);
        }
    }

    #[test]
    fn space_around_an_answer_does_not_count_and_space_within_is_told() {
        assert!(Answer::new(" yes\n", "yes").as_wanted);
        let spaced = Answer::new("a  b", "a b");
        assert!(!spaced.as_wanted && spaced.but_for_space);
        assert!(!Answer::new("ab", "a b").but_for_space);
    }

    #[test]
    fn very_long_answers_are_not_compared() {
        let (answer, wanted) = ("a ".repeat(MOST), "a ".repeat(MOST) + "b");
        assert_eq!(Answer::new(&answer, &wanted).pieces.len(), 1);
    }

    proptest! {
        #[test]
        fn an_answer_is_shown_whole(answer in "[ab ,é]{0,12}", wanted in "[ab ,é]{0,12}") {
            let pieces = Answer::new(&answer, &wanted).pieces;
            let shown = pieces.iter().filter(|piece| piece.kind != Kind::Missing);
            let shown: String = shown.map(|piece| piece.text.as_str()).collect();
            prop_assert_eq!(shown.trim(), answer.trim());
        }
    }
}
