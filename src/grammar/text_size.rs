//! Bounds on a grammar's text: on the work of compiling it, and on the stack that it takes.

use super::{Grammar, GrammarError};

/// Maximum bytes of a grammar's text; of a schema, as compact JSON.
pub const MAX_TEXT_BYTES: usize = 256 << 10;
/// Maximum number of choices.
const MAX_CHOICES: usize = 4096;
/// Maximum depth of brackets in a regular expression, or in Lark or GBNF text.
const MAX_NESTING: usize = 100;

/// Maximum number of rules of a Lark or GBNF grammar: llguidance recurses from rule to rule.
const MAX_RULES: usize = 2000;

/// Checks the bounds.
///
/// # Errors
/// The grammar exceeds one.
pub fn check(grammar: &Grammar) -> Result<(), GrammarError> {
    let too_large = |problem: String| {
        let kind = grammar.kind();
        Err(GrammarError::TooLarge { kind, problem })
    };
    let bytes = match grammar {
        Grammar::JsonObject => 0,
        Grammar::JsonSchema(schema) => schema.to_string().len(),
        Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
        Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
    };
    if bytes > MAX_TEXT_BYTES {
        return too_large(format!(
            "it has {bytes} bytes, at most {MAX_TEXT_BYTES} are allowed"
        ));
    }
    match grammar {
        Grammar::Choice(texts) if texts.len() > MAX_CHOICES => too_large(format!(
            "it has {} texts, at most {MAX_CHOICES} are allowed",
            texts.len()
        )),
        Grammar::Regex(text) if nesting(text) > MAX_NESTING => {
            too_large(format!("its brackets nest deeper than {MAX_NESTING}"))
        }
        Grammar::Lark(text) if nesting(&without_literals(text)) > MAX_NESTING => {
            too_large(format!("its brackets nest deeper than {MAX_NESTING}"))
        }
        Grammar::Lark(text) if rules(text) > MAX_RULES => {
            too_large(format!("it has more than {MAX_RULES} rules"))
        }
        _ => Ok(()),
    }
}

/// Number of colons outside of literals, which every rule has, but for those of `(?:`.
fn rules(text: &str) -> usize {
    without_literals(text)
        .replace("?:", "")
        .matches(':')
        .count()
}

/// Deepest nesting of brackets that are not escaped.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut escaped) = (0usize, 0, false);
    for c in text.chars() {
        match c {
            _ if escaped => {
                escaped = false;
                continue;
            }
            '\\' => escaped = true,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Grammar text without what stands between quotes.
fn without_literals(text: &str) -> String {
    let (mut rest, mut quoted, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            // A literal does not span lines.
            '\n' => quoted = false,
            c if !quoted => rest.push(c),
            _ => {}
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_counted_where_they_nest() {
        assert_eq!(nesting(r"((a)(b[c]))\(\(\("), 3);
        assert_eq!(nesting(&without_literals("a: \"((((\" (b)\nb: \"(")), 1);
        assert_eq!(nesting(&"(".repeat(500)), 500);
    }
}
