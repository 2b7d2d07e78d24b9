//! The option that an answer to a multiple-choice question names.

/// Words that mark the letter after them as an option, regardless of what follows it.
const OPTION_MARKERS: [&str; 3] = ["answer", "option", "choice"];

/// A run of letters and digits.
struct Word<'a> {
    text: &'a str,
    lower: String,
    /// Text between the previous word and this one.
    gap: &'a str,
}

/// The last option that `text` names, in lower case: `true`, `false`, `yes`, `no`, `answer1` to
/// `answer9` (also with a space), or a letter from A to E that is not an English article. `None` if
/// it names no option.
pub(super) fn chosen_option(text: &str) -> Option<String> {
    let (words, rest) = words(text);
    (0..words.len())
        .rev()
        .find_map(|at| option(&words, rest, at))
}

/// The option that the word at index `at` names, if any.
fn option(words: &[Word], rest: &str, at: usize) -> Option<String> {
    let word = &words[at];
    let previous = at.checked_sub(1).map(|previous| &words[previous]);
    match word.lower.as_bytes() {
        b"true" | b"false" | b"yes" | b"no" => Some(word.lower.clone()),
        [b'a', b'n', b's', b'w', b'e', b'r', b'1'..=b'9'] => Some(word.lower.clone()),
        [b'1'..=b'9'] => {
            let numbered = previous.is_some_and(|p| p.lower == "answer");
            let adjacent = word.gap.chars().all(|c| " #:_-".contains(c));
            (numbered && adjacent).then(|| format!("answer{}", word.lower))
        }
        [b'a'..=b'e'] => {
            let after = words.get(at + 1).map_or(rest, |next| next.gap);
            let followed = words.get(at + 1).is_some() && after.trim().is_empty();
            is_letter(word, previous, after, followed).then(|| word.lower.clone())
        }
        _ => None,
    }
}

/// Whether a single letter from a to e is an option. `after` is the text behind it; `followed` says
/// whether another word follows, separated by whitespace only.
fn is_letter(word: &Word, previous: Option<&Word>, after: &str, followed: bool) -> bool {
    // Part of a word: `e-mail`, `vitamin-C`, `don't`.
    let joins = ['-', '\'', '\u{2019}'];
    if word.gap.ends_with(joins) || after.starts_with(joins) {
        return false;
    }
    let Some(previous) = previous else {
        // The whole text, or a first word that is not an article: `B`, `b) the lizard`,
        // `C is right`.
        let upper = word.text != word.lower;
        return !followed || (upper && word.lower != "a");
    };
    let bracketed = word.gap.ends_with(['(', '[']) && after.starts_with([')', ']']);
    if bracketed || OPTION_MARKERS.contains(&previous.lower.as_str()) {
        return true;
    }
    let article = word.lower == "a" && followed;
    if word.text == word.lower {
        // In lower case a letter counts only after `is`: `the answer is b`.
        let stated = previous.lower == "is" && word.gap.trim_matches([' ', ':', '*']).is_empty();
        return stated && !article;
    }
    // An article is in upper case only at the beginning of a sentence.
    let begins_sentence = word.gap.contains(['.', '!', '?', '\n', ':', '"']);
    !(article && begins_sentence)
}

/// The words of a text, and the text after the last one.
fn words(text: &str) -> (Vec<Word<'_>>, &str) {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        let word = &rest[start..];
        let end = word.find(|c: char| !c.is_alphanumeric());
        let (word, remainder) = word.split_at(end.unwrap_or(word.len()));
        words.push(Word {
            text: word,
            lower: word.to_lowercase(),
            gap: &rest[..start],
        });
        rest = remainder;
    }
    (words, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_option(text: &str, want: &str) {
        assert_eq!(chosen_option(text).as_deref(), Some(want), "{text:?}");
    }

    #[test]
    fn the_last_option_counts() {
        assert_option("the correct answer is true", "true");
        assert_option("True or FALSE? I say False.", "false");
        assert_option("No, the answer is yes!", "yes");
        assert_option("the correct answer is answer2", "answer2");
        assert_option("Answer1 is wrong; Answer 3: because", "answer3");
        assert_option("answer #4", "answer4");
    }

    #[test]
    fn parts_of_words_are_not_options() {
        for text in [
            "untrue",
            "yesterday",
            "nothing",
            "know",
            "answer10",
            "answer",
            "answer0",
        ] {
            assert_eq!(chosen_option(text), None, "{text:?}");
        }
    }

    #[test]
    fn letters_can_be_options() {
        for (text, want) in [
            ("B", "b"),
            ("c", "c"),
            (" (d)", "d"),
            ("A.", "a"),
            ("a) the lizard", "a"),
            ("C is right", "c"),
            ("The answer is B", "b"),
            ("the answer is b.", "b"),
            ("The answer is: **D**", "d"),
            ("The correct answer is A because it is", "a"),
            ("answer: a because it fits", "a"),
            ("I take option e", "e"),
            ("It must be (a), a lizard", "a"),
            ("Not A but C, I think", "c"),
        ] {
            assert_option(text, want);
        }
    }

    #[test]
    fn articles_and_letters_within_words_are_not_options() {
        for text in [
            "A lizard eats insects.",
            "It eats. A hawk flies",
            "the answer is a lizard",
            "a hawk and a lizard",
            "e-mail me",
            "rich in vitamin-C",
            "we\u{2019}d go",
            "the letter b of the word",
            "F",
            "",
        ] {
            assert_eq!(chosen_option(text), None, "{text:?}");
        }
    }
}
