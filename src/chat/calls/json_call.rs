//! A call as a JSON object: `{"name": "f", "arguments": {...}}`.

use serde_json::{Map, Value};

use super::{Calls, NoCall, Progress};
use crate::chat::json::JsonReader;

/// Reader of one such object, in any order of its keys. `parameters` is another name of
/// `arguments`, which may also be JSON text, and `type` and `id` are skipped; any other key shows
/// that the object is no call.
#[derive(Debug)]
pub(super) struct JsonCall {
    state: State,
    /// The tool's name, once known.
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Whether the call was started, which it is with its arguments.
    started: bool,
}

#[derive(Debug)]
enum State {
    Open,
    /// Before a key, or at the start before the end.
    Key {
        first: bool,
    },
    InKey {
        reader: JsonReader,
        raw: String,
    },
    Colon(Field),
    /// Before a value.
    Value(Field),
    InValue {
        field: Field,
        reader: JsonReader,
        raw: String,
    },
    /// In the object of the arguments.
    Arguments(JsonReader),
    AfterValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    /// A text without a meaning.
    Skipped,
}

impl JsonCall {
    /// A reader before the opening brace.
    pub fn new() -> Self {
        Self {
            state: State::Open,
            name: None,
            early: None,
            started: false,
        }
    }

    /// Takes a character. [`Progress::Done`] at the closing brace.
    pub fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        let is_space = c.is_whitespace();
        match &mut self.state {
            State::Open
            | State::Key { .. }
            | State::Colon(_)
            | State::Value(_)
            | State::AfterValue
                if is_space => {}
            State::Open if c == '{' => self.state = State::Key { first: true },
            State::Key { .. } if c == '"' => {
                let (mut reader, mut raw) = (JsonReader::new(), String::new());
                let _ = reader.push(c, &mut raw);
                self.state = State::InKey { reader, raw };
            }
            State::Key { first: true } | State::AfterValue if c == '}' => {
                self.end(calls)?;
                return Ok(Progress::Done);
            }
            State::AfterValue if c == ',' => self.state = State::Key { first: false },
            State::InKey { reader, raw } => {
                if reader.push(c, raw).map_err(|_| NoCall)? {
                    self.state = State::Colon(field(raw)?);
                }
            }
            State::Colon(field) if c == ':' => self.state = State::Value(*field),
            State::Value(field) => {
                let field = *field;
                self.begin_value(field, c, calls)?;
            }
            State::InValue { field, reader, raw } => {
                if reader.push(c, raw).map_err(|_| NoCall)? {
                    let (field, raw) = (*field, std::mem::take(raw));
                    self.end_value(field, raw, calls)?;
                }
            }
            State::Arguments(reader) => {
                let mut text = String::new();
                let read = reader.push(c, &mut text).map_err(|_| NoCall)?;
                calls.arguments(&text);
                if read {
                    self.state = State::AfterValue;
                }
            }
            State::Open | State::Key { .. } | State::Colon(_) | State::AfterValue => {
                return Err(NoCall);
            }
        }
        Ok(Progress::More)
    }

    fn begin_value(&mut self, field: Field, c: char, calls: &mut Calls) -> Result<(), NoCall> {
        let has_arguments = self.started || self.early.is_some();
        let allowed = match field {
            Field::Name => c == '"' && self.name.is_none(),
            Field::Arguments => (c == '{' || c == '"') && !has_arguments,
            Field::Skipped => c == '"',
        };
        if !allowed {
            return Err(NoCall);
        }
        let (mut reader, mut raw) = (JsonReader::new(), String::new());
        let _ = reader.push(c, &mut raw);
        self.state = match &self.name {
            Some(name) if field == Field::Arguments && c == '{' => {
                calls.start(name);
                calls.arguments(&raw);
                self.started = true;
                State::Arguments(reader)
            }
            _ => State::InValue { field, reader, raw },
        };
        Ok(())
    }

    fn end_value(&mut self, field: Field, raw: String, calls: &mut Calls) -> Result<(), NoCall> {
        self.state = State::AfterValue;
        match field {
            Field::Skipped => return Ok(()),
            Field::Name => {
                let name: String = serde_json::from_str(&raw).map_err(|_| NoCall)?;
                calls.tool(&name)?;
                self.name = Some(name);
            }
            Field::Arguments if raw.starts_with('"') => {
                let text: String = serde_json::from_str(&raw).map_err(|_| NoCall)?;
                let _: Map<String, Value> = serde_json::from_str(&text).map_err(|_| NoCall)?;
                self.early = Some(text);
            }
            Field::Arguments => self.early = Some(raw),
        }
        if let (Some(name), Some(arguments)) = (&self.name, &self.early) {
            calls.start(name);
            calls.arguments(arguments);
            self.started = true;
        }
        Ok(())
    }

    /// A call without arguments is one without parameters.
    fn end(&mut self, calls: &mut Calls) -> Result<(), NoCall> {
        let name = self.name.as_ref().ok_or(NoCall)?;
        if !self.started {
            calls.start(name);
            calls.arguments("{}");
        }
        calls.settle();
        Ok(())
    }
}

fn field(raw_key: &str) -> Result<Field, NoCall> {
    match raw_key {
        "\"name\"" => Ok(Field::Name),
        "\"arguments\"" | "\"parameters\"" => Ok(Field::Arguments),
        "\"type\"" | "\"id\"" => Ok(Field::Skipped),
        _ => Err(NoCall),
    }
}
