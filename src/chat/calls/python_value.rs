//! A literal of Python, as JSON.

use super::NoCall;
use crate::chat::json::{escaped, is_number, quoted};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 127;

/// Whether a value ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueEnd {
    Open,
    /// With the character.
    Taken,
    /// Before the character, which is not part of it.
    Before,
}

/// Reader of one literal: a text, a number, `True`, `False`, `None`, a list, a tuple or a dict.
/// Also takes JSON's literals and escapes.
#[derive(Debug)]
pub(super) struct PythonValue {
    open: Vec<Container>,
    state: State,
    /// Whether the current item is the key of a dict.
    is_key: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    List,
    Tuple,
    Dict,
}

#[derive(Debug)]
enum State {
    Value,
    /// Before an item, or the end of the container: a comma may stand before that.
    Item {
        first: bool,
    },
    Text {
        quote: char,
    },
    Escape {
        quote: char,
    },
    /// In `\xXX`, `\uXXXX` or `\UXXXXXXXX`.
    Code {
        quote: char,
        len: usize,
        digits: String,
    },
    /// A number or a name.
    Word(String),
    AfterKey,
    AfterValue,
}

impl PythonValue {
    /// A reader before the first character.
    pub fn new() -> Self {
        Self {
            open: Vec::new(),
            state: State::Value,
            is_key: false,
        }
    }

    /// Takes a character, and writes JSON.
    ///
    /// # Errors
    /// No literal reads on like this.
    pub fn push(&mut self, c: char, out: &mut String) -> Result<ValueEnd, NoCall> {
        if let State::Word(word) = &mut self.state {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-') {
                word.push(c);
                return Ok(ValueEnd::Open);
            }
            let json = word_as_json(word)?;
            out.push_str(&if self.is_key { quoted(&json) } else { json });
            self.end_item();
            if self.open.is_empty() {
                return Ok(ValueEnd::Before);
            }
        }
        self.next(c, out)?;
        let ended = self.open.is_empty() && matches!(self.state, State::AfterValue);
        Ok(if ended {
            ValueEnd::Taken
        } else {
            ValueEnd::Open
        })
    }

    fn next(&mut self, c: char, out: &mut String) -> Result<(), NoCall> {
        let closes = self.closes(c);
        match &mut self.state {
            State::Value | State::Item { .. } | State::AfterKey | State::AfterValue
                if c.is_whitespace() => {}
            State::Text { quote } if c == *quote => {
                out.push('"');
                self.end_item();
            }
            State::Text { quote } if c == '\\' => self.state = State::Escape { quote: *quote },
            State::Text { .. } => out.push_str(&escaped(c)),
            State::Escape { quote } => {
                let quote = *quote;
                self.escape(quote, c, out);
            }
            State::Code { quote, len, digits } if c.is_ascii_hexdigit() => {
                digits.push(c);
                if digits.len() == *len {
                    out.push_str(&code_as_json(digits)?);
                    self.state = State::Text { quote: *quote };
                }
            }
            State::Item { first } => {
                let first = *first;
                if closes {
                    self.close(out);
                } else {
                    out.push_str(if first { "" } else { ", " });
                    self.is_key = self.open.last() == Some(&Container::Dict);
                    self.begin(c, out)?;
                }
            }
            State::Value => self.begin(c, out)?,
            State::AfterKey if c == ':' => {
                out.push_str(": ");
                self.is_key = false;
                self.state = State::Value;
            }
            State::AfterValue if c == ',' => self.state = State::Item { first: false },
            State::AfterValue if closes => self.close(out),
            State::Code { .. } | State::AfterKey | State::AfterValue | State::Word(_) => {
                return Err(NoCall);
            }
        }
        Ok(())
    }

    fn begin(&mut self, c: char, out: &mut String) -> Result<(), NoCall> {
        let (container, bracket) = match c {
            '"' | '\'' => {
                out.push('"');
                self.state = State::Text { quote: c };
                return Ok(());
            }
            '[' => (Container::List, '['),
            '(' => (Container::Tuple, '['),
            '{' => (Container::Dict, '{'),
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-') => {
                self.state = State::Word(c.to_string());
                return Ok(());
            }
            _ => return Err(NoCall),
        };
        if self.is_key || self.open.len() == MAX_DEPTH {
            return Err(NoCall);
        }
        out.push(bracket);
        self.open.push(container);
        self.state = State::Item { first: true };
        Ok(())
    }

    fn end_item(&mut self) {
        self.state = if self.is_key {
            State::AfterKey
        } else {
            State::AfterValue
        };
    }

    fn closes(&self, c: char) -> bool {
        matches!(
            (self.open.last(), c),
            (Some(Container::List), ']')
                | (Some(Container::Tuple), ')')
                | (Some(Container::Dict), '}')
        )
    }

    fn close(&mut self, out: &mut String) {
        let is_dict = self.open.pop() == Some(Container::Dict);
        out.push(if is_dict { '}' } else { ']' });
        self.is_key = false;
        self.state = State::AfterValue;
    }

    /// The character after a backslash. An unknown escape stands for itself, as in Python.
    fn escape(&mut self, quote: char, c: char, out: &mut String) {
        let digits = String::new();
        let len = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if len > 0 {
            self.state = State::Code { quote, len, digits };
            return;
        }
        match c {
            'n' | 't' | 'r' | 'b' | 'f' | '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\'' | '/' => out.push(c),
            'a' => out.push_str("\\u0007"),
            'v' => out.push_str("\\u000b"),
            '0' => out.push_str("\\u0000"),
            '\n' => {}
            _ => {
                out.push_str("\\\\");
                out.push_str(&escaped(c));
            }
        }
        self.state = State::Text { quote };
    }
}

/// The character of a hexadecimal code. Halves of a surrogate pair stay escapes.
fn code_as_json(digits: &str) -> Result<String, NoCall> {
    let code = u32::from_str_radix(digits, 16).map_err(|_| NoCall)?;
    if (0xD800..0xE000).contains(&code) {
        return Ok(format!("\\u{code:04x}"));
    }
    Ok(escaped(char::from_u32(code).ok_or(NoCall)?))
}

/// A literal other than a text or a container.
fn word_as_json(word: &str) -> Result<String, NoCall> {
    match word {
        "True" | "true" => return Ok("true".to_owned()),
        "False" | "false" => return Ok("false".to_owned()),
        "None" | "null" => return Ok("null".to_owned()),
        _ => {}
    }
    let number = word.strip_prefix('+').unwrap_or(word).replace('_', "");
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", &*number),
    };
    let zero = if digits.starts_with('.') { "0" } else { "" };
    let json = format!("{sign}{zero}{digits}");
    if is_number(&json) {
        Ok(json)
    } else {
        Err(NoCall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON of a literal that something else follows.
    fn json(literal: &str) -> Option<String> {
        let mut value = PythonValue::new();
        let mut out = String::new();
        let text = format!("{literal})");
        for (at, c) in text.char_indices() {
            match value.push(c, &mut out).ok()? {
                ValueEnd::Open => {}
                ValueEnd::Taken if at + c.len_utf8() == literal.len() => return Some(out),
                ValueEnd::Before if at == literal.len() => return Some(out),
                _ => return None,
            }
        }
        None
    }

    // Expected values come from Python's `json.dumps(ast.literal_eval(...), ensure_ascii=False)`.
    #[test]
    fn literals_become_json() {
        for (literal, expected) in [
            ("1", "1"),
            ("-2.5e3", "-2.5e3"),
            ("1_000", "1000"),
            ("True", "true"),
            ("None", "null"),
            (
                r#"'a\'b\"c\n\x41\u00e9\U0001F917\q'"#,
                r#""a'b\"c\nAé🤗\\q""#,
            ),
            (r#""it's""#, r#""it's""#),
            ("[1, 'a', (2,), [],]", r#"[1, "a", [2], []]"#),
            (
                "{'a': {'b': [True]}, 'c': None}",
                r#"{"a": {"b": [true]}, "c": null}"#,
            ),
            ("{1: 2}", r#"{"1": 2}"#),
            ("''", r#""""#),
            ("{}", "{}"),
            ("'a\tb'", r#""a\tb""#),
        ] {
            assert_eq!(json(literal).as_deref(), Some(expected), "{literal}");
        }
    }

    #[test]
    fn what_is_no_literal_is_refused() {
        for text in [
            "x", "1.2.3", "[1 2]", "{1}", "{[1]: 2}", "f(1)", "[1)", "01", "'\\xg1'",
        ] {
            assert_eq!(json(text), None, "{text}");
        }
    }
}
