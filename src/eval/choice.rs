//! The option that an answer decides for.

/// Words before a letter that make it an option, whatever comes after it.
const NAMES_AN_OPTION: [&str; 3] = ["answer", "option", "choice"];

/// A run of letters and digits, and what stands around it.
struct Word<'a> {
    text: &'a str,
    lower: String,
    /// What is between the word before and this one.
    gap: &'a str,
}

/// The last option that `text` names, in lower case: `true`, `false`, `yes`, `no`, `answer1` to
/// `answer9` (also with a space), or a letter from A to E that is no English article. `None` where it
/// names none.
pub(super) fn choice(text: &str) -> Option<String> {
    let (words, rest) = words(text);
    (0..words.len())
        .rev()
        .find_map(|at| option(&words, rest, at))
}

/// The option that the word at a place is.
fn option(words: &[Word], rest: &str, at: usize) -> Option<String> {
    let word = &words[at];
    let previous = at.checked_sub(1).map(|before| &words[before]);
    match word.lower.as_bytes() {
        b"true" | b"false" | b"yes" | b"no" => Some(word.lower.clone()),
        [b'a', b'n', b's', b'w', b'e', b'r', b'1'..=b'9'] => Some(word.lower.clone()),
        [b'1'..=b'9'] => {
            let numbered = previous.is_some_and(|p| p.lower == "answer");
            let near = word.gap.chars().all(|c| " #:_-".contains(c));
            (numbered && near).then(|| format!("answer{}", word.lower))
        }
        [b'a'..=b'e'] => {
            let after = words.get(at + 1).map_or(rest, |next| next.gap);
            let followed = words.get(at + 1).is_some() && after.trim().is_empty();
            is_letter(word, previous, after, followed).then(|| word.lower.clone())
        }
        _ => None,
    }
}

/// Whether a single letter from a to e stands for an option.
fn is_letter(word: &Word, previous: Option<&Word>, after: &str, followed: bool) -> bool {
    // Part of a word: `e-mail`, `vitamin-C`, `don't`.
    let joins = ['-', '\'', '\u{2019}'];
    if word.gap.ends_with(joins) || after.starts_with(joins) {
        return false;
    }
    let Some(previous) = previous else {
        // All there is, or a first word that is no article: `B`, `b) the lizard`, `C is right`.
        let upper = word.text != word.lower;
        return !followed || (upper && word.lower != "a");
    };
    let bracketed = word.gap.ends_with(['(', '[']) && after.starts_with([')', ']']);
    if bracketed || NAMES_AN_OPTION.contains(&previous.lower.as_str()) {
        return true;
    }
    let article = word.lower == "a" && followed;
    if word.text == word.lower {
        // Any letter, or an article, unless the sentence says that it is the one.
        let said = previous.lower == "is" && word.gap.trim_matches([' ', ':', '*']).is_empty();
        return said && !article;
    }
    // An article is in upper case only where a sentence begins.
    let begins = word.gap.contains(['.', '!', '?', '\n', ':', '"']);
    !(article && begins)
}

/// The words of a text, and what is behind the last.
fn words(text: &str) -> (Vec<Word<'_>>, &str) {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        let word = &rest[start..];
        let end = word.find(|c: char| !c.is_alphanumeric());
        let (word, behind) = word.split_at(end.unwrap_or(word.len()));
        words.push(Word {
            text: word,
            lower: word.to_lowercase(),
            gap: &rest[..start],
        });
        rest = behind;
    }
    (words, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_choice(text: &str, want: &str) {
        assert_eq!(choice(text).as_deref(), Some(want), "{text:?}");
    }

    #[test]
    fn the_last_word_that_decides_counts() {
        assert_choice("the correct answer is true", "true");
        assert_choice("True or FALSE? I say False.", "false");
        assert_choice("No, the answer is yes!", "yes");
        assert_choice("the correct answer is answer2", "answer2");
        assert_choice("Answer1 is wrong; Answer 3: because", "answer3");
        assert_choice("answer #4", "answer4");
    }

    #[test]
    fn words_within_words_are_none() {
        for text in [
            "untrue",
            "yesterday",
            "nothing",
            "know",
            "answer10",
            "answer",
            "answer0",
        ] {
            assert_eq!(choice(text), None, "{text:?}");
        }
    }

    #[test]
    fn letters_are_options_where_they_stand_for_one() {
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
            assert_choice(text, want);
        }
    }

    #[test]
    fn articles_and_parts_of_words_are_no_options() {
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
            assert_eq!(choice(text), None, "{text:?}");
        }
    }
}
