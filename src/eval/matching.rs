//! Rules that compare a greedy answer with the expected one.

use std::fmt;
use std::str::FromStr;

use super::multiple_choice::chosen_option;
use super::number::number;
use super::rouge::rouge_l;

/// How an answer is compared with the expected one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatchRule {
    /// The same text, ignoring differences in whitespace.
    #[default]
    Text,
    /// The same query, ignoring whitespace, the kind of quotes, case and a trailing `;`.
    Sql,
    /// The same last number, or the one after `####`, where GSM8K puts the result.
    Number,
    /// The same option of a multiple-choice question: the last of `true`, `false`, `yes`, `no`,
    /// `answer1` to `answer9`, A to E.
    MultipleChoice,
    /// The F1 of ROUGE-L: a degree of similarity rather than a match.
    RougeL,
}

impl MatchRule {
    /// Score of `answer` against `expected`, in [0, 1]; 0 or 1 for exact rules.
    pub fn score(self, answer: &str, expected: &str) -> f64 {
        let same = match self {
            Self::RougeL => return rouge_l(answer, expected),
            Self::Text => words(answer).eq(words(expected)),
            Self::Sql => normalized_query(answer) == normalized_query(expected),
            Self::Number => both(number(answer), number(expected)),
            Self::MultipleChoice => both(chosen_option(answer), chosen_option(expected)),
        };
        f64::from(u8::from(same))
    }

    /// Name of the mean score.
    pub fn measure(self) -> &'static str {
        match self {
            Self::RougeL => "ROUGE-L",
            _ => "exact match",
        }
    }

    /// Whether scores are 0 or 1, so that matches can be counted.
    pub fn is_exact(self) -> bool {
        self != Self::RougeL
    }
}

impl FromStr for MatchRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "sql" => Ok(Self::Sql),
            "number" => Ok(Self::Number),
            "choice" => Ok(Self::MultipleChoice),
            "rouge-l" => Ok(Self::RougeL),
            _ => Err(format!(
                "{text:?} is not a match rule: expected text, sql, number, choice or rouge-l"
            )),
        }
    }
}

impl fmt::Display for MatchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Sql => "sql",
            Self::Number => "number",
            Self::MultipleChoice => "choice",
            Self::RougeL => "rouge-l",
        })
    }
}

/// Whether both are present and equal. An answer without a number or an option never matches.
fn both(answer: Option<String>, expected: Option<String>) -> bool {
    answer.is_some() && answer == expected
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// Normal form of a query.
fn normalized_query(text: &str) -> String {
    let text = words(text).collect::<Vec<_>>().join(" ");
    let text = text.trim_end_matches([';', ' ']);
    text.replace('\'', "\"").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(rule: MatchRule, answer: &str, expected: &str) -> bool {
        rule.score(answer, expected) == 1.0
    }

    #[test]
    fn rules_have_names() {
        for name in ["text", "sql", "number", "choice", "rouge-l"] {
            assert_eq!(name.parse::<MatchRule>().unwrap().to_string(), name);
        }
        let error = "bleu".parse::<MatchRule>().unwrap_err();
        assert!(
            error.contains("\"bleu\"") && error.contains("rouge-l"),
            "{error}"
        );
    }

    #[test]
    fn text_is_compared_ignoring_whitespace() {
        let same = |a, b| matches(MatchRule::Text, a, b);
        assert!(same(" one\n two\t three ", "one two three"));
        assert!(same("", " \n"));
        assert!(!same("One two", "one two"));
        assert!(!same("onetwo", "one two"));
        assert!(!same("one two three", "one two"));
        assert!(!same("", "one"));
    }

    #[test]
    fn queries_are_compared_ignoring_spelling() {
        let same = |a, b| matches(MatchRule::Sql, a, b);
        let want = "SELECT name FROM t WHERE a = \"x y\"";
        assert!(same("select NAME\n  from t\twhere a = 'X  y' ;\n", want));
        assert!(same("SELECT name FROM t WHERE a = \"x y\";;", want));
        assert!(!same("SELECT name FROM t WHERE a = x y", want));
        assert!(!same("SELECT name FROM t WHERE a = \"xy\"", want));
        assert!(!same("SELECT name FROM t; SELECT 1", "SELECT name FROM t"));
    }

    #[test]
    fn missing_numbers_and_options_never_match() {
        assert!(matches(
            MatchRule::Number,
            "so 1,018.50 $",
            "text\n#### 1018.5"
        ));
        assert!(!matches(MatchRule::Number, "no idea", "none either"));
        assert!(!matches(MatchRule::Number, "", "#### 18"));
        assert!(matches(
            MatchRule::MultipleChoice,
            "It is True.",
            "the correct answer is true"
        ));
        assert!(!matches(MatchRule::MultipleChoice, "maybe", "perhaps"));
        assert!(!matches(MatchRule::MultipleChoice, "yes", "true"));
    }

    #[test]
    fn rouge_l_is_a_degree() {
        let degree = MatchRule::RougeL.score("a b c d", "a c d e");
        assert!(!MatchRule::RougeL.is_exact() && (degree - 0.75).abs() < 1e-12);
    }
}
