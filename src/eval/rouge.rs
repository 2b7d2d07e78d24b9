//! ROUGE-L, as the `rouge_score` package computes it without a stemmer.

/// The F1 of the longest common subsequence of the words of two texts (Lin 2004). Words are runs of
/// `a-z0-9` in lower case. 0 if either text has no words.
pub(super) fn rouge_l(answer: &str, expected: &str) -> f64 {
    let (answer, expected) = (answer.to_lowercase(), expected.to_lowercase());
    let (answer, expected) = (words(&answer), words(&expected));
    let common = common_subsequence(&answer, &expected) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let precision = common / answer.len() as f64;
    let recall = common / expected.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> Vec<&str> {
    let separator = |c: char| !matches!(c, 'a'..='z' | '0'..='9');
    text.split(separator)
        .filter(|word| !word.is_empty())
        .collect()
}

/// Length of the longest common subsequence; keeps one row of the table.
fn common_subsequence(a: &[&str], b: &[&str]) -> usize {
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = lengths[at + 1];
            lengths[at + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(lengths[at])
            };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of the Python package: `RougeScorer(["rougeL"]).score(expected, answer)`.
    #[test]
    fn agrees_with_the_package() {
        for (answer, expected, want) in [
            (
                "the cat was found under the bed",
                "the cat was under the bed",
                12.0 / 13.0,
            ),
            ("The CAT, sat.", "the cat sat", 1.0),
            ("police kill the gunman", "police killed the gunman", 0.75),
            ("the gunman kill police", "police killed the gunman", 0.5),
            ("It's 5 o'clock", "it s 5 o clock", 1.0),
            ("caf\u{e9} au lait", "caf au lait", 1.0),
            ("x_y \u{130}stanbul K9", "x y i stanbul k9", 1.0),
            ("a b", "c d", 0.0),
            ("", "a", 0.0),
            ("?!", "?!", 0.0),
        ] {
            let got = rouge_l(answer, expected);
            assert!(
                (got - want).abs() < 1e-12,
                "{answer:?}, {expected:?}: {got}"
            );
        }
    }

    #[test]
    fn order_counts_and_repetition_does_not_help() {
        assert!(rouge_l("a b c", "c b a") < rouge_l("a b c", "a x c"));
        assert!(rouge_l("a a a a", "a b") < rouge_l("a", "a b"));
    }
}
