//! An incremental reader of one JSON value.

/// Deepest nesting that is read; that of `serde_json`.
const MAX_DEPTH: usize = 127;

/// A text that is no JSON, at the character that shows it.
#[derive(Debug)]
pub(super) struct NotJson;

/// Reader of one string, array or object, character by character. Bare control characters in
/// strings, which models write, become escapes.
#[derive(Debug)]
pub(super) struct JsonReader {
    /// The open containers; true for objects.
    open: Vec<bool>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// A value or the end of the array.
    FirstItem,
    /// A key or the end of the object.
    FirstKey,
    Key,
    Colon,
    AfterValue,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// Hexadecimal digits that are left of `\uXXXX`.
    Unicode {
        key: bool,
        left: u8,
    },
    /// The characters that are left of `true`, `false` or `null`.
    Literal(&'static str),
    Number(Number),
}

/// The part of a number that was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl JsonReader {
    /// A reader before the first character.
    pub fn new() -> Self {
        Self {
            open: Vec::new(),
            state: State::Value,
        }
    }

    /// Takes a character, and writes it to `out`. True if the value ends with it.
    pub fn push(&mut self, c: char, out: &mut String) -> Result<bool, NotJson> {
        if let State::Number(number) = self.state {
            if let Some(next) = number.next(c) {
                self.state = State::Number(next);
                out.push(c);
                return Ok(false);
            }
            if !number.may_end() {
                return Err(NotJson);
            }
            self.state = State::AfterValue;
        }
        let in_text = matches!(self.state, State::Text { .. });
        if in_text && c.is_control() && c < ' ' {
            out.push_str(&escaped(c));
            return Ok(false);
        }
        self.state = self.next(c)?;
        out.push(c);
        Ok(self.state == State::AfterValue && self.open.is_empty())
    }

    /// Whether the next character is inside of a string.
    pub fn in_text(&self) -> bool {
        matches!(
            self.state,
            State::Text { .. } | State::Escape { .. } | State::Unicode { .. }
        )
    }

    fn next(&mut self, c: char) -> Result<State, NotJson> {
        Ok(match self.state {
            State::Text { key } => match c {
                '"' if key => State::Colon,
                '"' => State::AfterValue,
                '\\' => State::Escape { key },
                _ => State::Text { key },
            },
            State::Escape { key } => match c {
                'u' => State::Unicode { key, left: 4 },
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => State::Text { key },
                _ => return Err(NotJson),
            },
            State::Unicode { key, left } if c.is_ascii_hexdigit() => match left - 1 {
                0 => State::Text { key },
                left => State::Unicode { key, left },
            },
            State::Literal(rest) if rest.starts_with(c) => match &rest[1..] {
                "" => State::AfterValue,
                rest => State::Literal(rest),
            },
            State::Unicode { .. } | State::Literal(_) => return Err(NotJson),
            state if matches!(c, ' ' | '\n' | '\r' | '\t') => state,
            State::Value => self.value(c)?,
            State::FirstItem if c == ']' => self.close(false)?,
            State::FirstItem => self.value(c)?,
            State::FirstKey if c == '}' => self.close(true)?,
            State::FirstKey | State::Key if c == '"' => State::Text { key: true },
            State::Colon if c == ':' => State::Value,
            State::AfterValue => match c {
                ',' if self.open.last() == Some(&true) => State::Key,
                ',' if self.open.last() == Some(&false) => State::Value,
                '}' => self.close(true)?,
                ']' => self.close(false)?,
                _ => return Err(NotJson),
            },
            State::FirstKey | State::Key | State::Colon | State::Number(_) => {
                return Err(NotJson);
            }
        })
    }

    fn value(&mut self, c: char) -> Result<State, NotJson> {
        let is_object = c == '{';
        if is_object || c == '[' {
            self.open.push(is_object);
            let fits = self.open.len() <= MAX_DEPTH;
            let state = if is_object {
                State::FirstKey
            } else {
                State::FirstItem
            };
            return if fits { Ok(state) } else { Err(NotJson) };
        }
        // Numbers and literals end only at what follows, which nothing does outside of containers.
        match c {
            '"' => Ok(State::Text { key: false }),
            _ if self.open.is_empty() => Err(NotJson),
            't' => Ok(State::Literal("rue")),
            'f' => Ok(State::Literal("alse")),
            'n' => Ok(State::Literal("ull")),
            '-' => Ok(State::Number(Number::Minus)),
            '0' => Ok(State::Number(Number::Zero)),
            '1'..='9' => Ok(State::Number(Number::Integer)),
            _ => Err(NotJson),
        }
    }

    fn close(&mut self, object: bool) -> Result<State, NotJson> {
        match self.open.pop() {
            Some(open) if open == object => Ok(State::AfterValue),
            _ => Err(NotJson),
        }
    }
}

impl Number {
    fn next(self, c: char) -> Option<Self> {
        match (self, c) {
            (Self::Minus, '0') => Some(Self::Zero),
            (Self::Minus, '1'..='9') | (Self::Integer, '0'..='9') => Some(Self::Integer),
            (Self::Zero | Self::Integer, '.') => Some(Self::Point),
            (Self::Point | Self::Fraction, '0'..='9') => Some(Self::Fraction),
            (Self::Zero | Self::Integer | Self::Fraction, 'e' | 'E') => Some(Self::Exponent),
            (Self::Exponent, '+' | '-') => Some(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, '0'..='9') => {
                Some(Self::ExponentDigits)
            }
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(
            self,
            Self::Zero | Self::Integer | Self::Fraction | Self::ExponentDigits
        )
    }
}

/// Whether a text is a number of JSON, of any size.
pub(super) fn is_number(text: &str) -> bool {
    let mut reader = JsonReader::new();
    let mut out = String::new();
    let mut chars = "[".chars().chain(text.chars());
    let read = chars.all(|c| matches!(reader.push(c, &mut out), Ok(false)));
    read && matches!(reader.state, State::Number(number) if number.may_end())
}

/// A character as in a JSON string, without the quotes.
pub(super) fn escaped(c: char) -> String {
    let quoted = serde_json::Value::from(c.to_string()).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a text: up to the end of its first value.
    fn read(text: &str) -> Option<(String, usize)> {
        let mut reader = JsonReader::new();
        let mut out = String::new();
        for (at, c) in text.char_indices() {
            if reader.push(c, &mut out).ok()? {
                return Some((out, at + c.len_utf8()));
            }
        }
        None
    }

    #[test]
    fn a_value_is_read_up_to_its_end() {
        for json in [
            r#"{"a": [1, -0.5e+10, 0, {"b\"}": null}], "é": "\u00e9\\", "c": true}"#,
            "[]",
            "{}",
            "[[], {}, false]",
            r#""a\nb🤗""#,
        ] {
            assert_eq!(
                read(&format!("{json}}} x")),
                Some((json.to_owned(), json.len()))
            );
        }
        assert_eq!(read("[\"a\nb\"]").unwrap().0, r#"["a\nb"]"#);
    }

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            "{\"a\" 1}",
            "{\"a\": }",
            "{a: 1}",
            "[1,]",
            "[01]",
            "[1.]",
            "[-]",
            "[1e]",
            "{\"a\":1,}",
            "[\"\\x\"]",
            "[\"\\u12g4\"]",
            "[tru]",
            "[truee]",
            "{]",
            "[}",
            "[1 2]",
            "[.5]",
            "[+1]",
        ] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err());
            assert!(read(text).is_none(), "{text}");
        }
    }
}
