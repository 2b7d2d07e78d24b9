//! Literal values in schemas, as far as an output can spell them.

use serde_json::Value;

use super::super::GrammarError;
use super::pointer;

/// 2^53: an f64 holds every integer below it, but rounds some above. llguidance computes with f64.
pub const INEXACT_FROM: f64 = 9_007_199_254_740_992.0;

/// Checks a value of `const` or `enum`.
///
/// # Errors
/// An output could not spell it exactly.
pub fn check(place: &str, value: &Value) -> Result<(), GrammarError> {
    match value {
        Value::Number(_) => check_number(place, value),
        Value::String(text) => check_text(place, text),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(i, item)| check(&pointer::child(place, &i.to_string()), item))
        }
        Value::Object(members) => {
            let mut members = members.iter();
            members.try_for_each(|(name, member)| check(&pointer::child(place, name), member))
        }
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

/// Checks a number, if the value is one.
///
/// # Errors
/// An f64 may not hold it exactly.
pub fn check_number(place: &str, value: &Value) -> Result<(), GrammarError> {
    match value.as_f64() {
        Some(number) if number.abs() >= INEXACT_FROM => {
            let problem = "numbers from 2^53 on cannot be compared exactly";
            Err(GrammarError::schema(place, problem))
        }
        _ => Ok(()),
    }
}

/// Checks a text against the escapes that outputs are written with.
fn check_text(place: &str, text: &str) -> Result<(), GrammarError> {
    let unwritten = |c: char| match c {
        '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => false,
        c => c.is_ascii_control(),
    };
    match text.chars().find(|&c| unwritten(c)) {
        Some(c) => {
            let problem = format!(
                "outputs cannot contain the control character U+{:04X}",
                c as u32
            );
            Err(GrammarError::schema(place, problem))
        }
        None => Ok(()),
    }
}
