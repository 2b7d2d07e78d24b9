//! A finder of decisions by dtype, device or quantisation.

use std::ops::Range;

use crate::source::Token;

const DECIDED_TYPES: &[&str] = &["DType", "Device", "GgmlDType", "DeviceLocation", "Weight"];
const DECIDING_METHODS: &[&str] = &["is_cpu", "is_cuda", "is_metal"];

/// The decisions in `tokens`, as the line and the type or method of each. A decision names a
/// variant of a type of [`DECIDED_TYPES`] in the pattern or guard of a match arm, in a `let`
/// pattern, in `matches!` or beside `==`, imports variants so that arms need not name the type, or
/// calls a method of [`DECIDING_METHODS`].
pub fn decisions(tokens: &[Token]) -> Vec<(usize, String)> {
    let mut deciding = vec![false; tokens.len()];
    for at in 0..tokens.len() {
        let span = match tokens[at].text.as_str() {
            "=>" => arm_head(tokens, at)..at,
            "let" => at..first_of(tokens, at, &["=", ";"]),
            "use" => at..first_of(tokens, at, &[";"]),
            "matches" => at..closing(tokens, at),
            "==" | "!=" => compared(tokens, at),
            _ => continue,
        };
        deciding[span].fill(true);
    }
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let text = token.text.as_str();
        let names_variant = tokens.get(at + 1).is_some_and(|next| next.text == "::");
        let by_type = deciding[at] && names_variant && DECIDED_TYPES.contains(&text);
        let by_method = at > 0 && tokens[at - 1].text == "." && DECIDING_METHODS.contains(&text);
        if by_type || by_method {
            found.push((token.line, text.to_owned()));
        }
    }
    found
}

fn first_of(tokens: &[Token], from: usize, ends: &[&str]) -> usize {
    let found = tokens[from..]
        .iter()
        .position(|token| ends.contains(&token.text.as_str()));
    from + found.unwrap_or(tokens.len() - from)
}

/// The end of the first bracket that opens at `from` or later.
fn closing(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth <= 1 => return at,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}

/// The paths on both sides of the `==` or `!=` at `at`.
fn compared(tokens: &[Token], at: usize) -> Range<usize> {
    let of_path =
        |token: &&Token| token.is_name() || matches!(token.text.as_str(), "::" | "&" | "*");
    let before = tokens[..at].iter().rev().take_while(of_path).count();
    let after = tokens[at + 1..].iter().take_while(of_path).count();
    at - before..at + 1 + after
}

/// The start of the pattern whose `=>` is at `arrow`, with its guard.
fn arm_head(tokens: &[Token], arrow: usize) -> usize {
    let (mut at, mut depth) = (arrow, 0);
    while at > 0 {
        // A brace closes a struct pattern only if the pattern continues after it.
        let goes_on = matches!(tokens[at].text.as_str(), "=>" | "|" | "if");
        match tokens[at - 1].text.as_str() {
            "}" if depth == 0 && !goes_on => break,
            ")" | "]" | "}" => depth += 1,
            "," | "=>" | ";" | "(" | "[" | "{" if depth == 0 => break,
            "(" | "[" | "{" => depth -= 1,
            _ => {}
        }
        at -= 1;
    }
    at
}
