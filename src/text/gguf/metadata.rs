use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use crate::text::error::TextError;

/// Typed access to GGUF metadata. An absent key is `None`; a value of an unexpected type is an
/// error.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a>(pub &'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    /// An optional string.
    pub fn string(self, key: &'static str) -> Result<Option<&'a str>, TextError> {
        self.read(key, "a string", as_string)
    }

    /// An optional boolean.
    pub fn boolean(self, key: &'static str) -> Result<Option<bool>, TextError> {
        self.read(key, "a boolean", |value| value.to_bool().ok())
    }

    /// An optional integer.
    pub fn integer(self, key: &'static str) -> Result<Option<u32>, TextError> {
        self.read(key, "a non-negative 32-bit integer", as_integer)
    }

    /// A required list.
    pub fn strings(self, key: &'static str) -> Result<Vec<&'a str>, TextError> {
        const EXPECTED: &str = "a list of strings";
        let strings = self.read(key, EXPECTED, |value| as_list(value, as_string))?;
        strings.ok_or_else(|| missing(key, EXPECTED))
    }

    /// A required list.
    pub fn floats(self, key: &'static str) -> Result<Vec<f32>, TextError> {
        const EXPECTED: &str = "a list of 32-bit floats";
        let floats = self.read(key, EXPECTED, |value| {
            as_list(value, |item| item.to_f32().ok())
        })?;
        floats.ok_or_else(|| missing(key, EXPECTED))
    }

    /// An optional list.
    pub fn optional_integers(self, key: &'static str) -> Result<Option<Vec<u32>>, TextError> {
        self.read(key, "a list of non-negative integers", |value| {
            as_list(value, as_integer)
        })
    }

    fn read<T>(
        self,
        key: &'static str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let found = || match value {
            Value::Array(_) => "a list of another type".to_owned(),
            other => format!("{other:?}"),
        };
        convert(value).map(Some).ok_or_else(|| TextError::Metadata {
            key,
            found: found(),
            expected,
        })
    }
}

fn missing(key: &'static str, expected: &'static str) -> TextError {
    TextError::Metadata {
        key,
        found: "nothing".to_owned(),
        expected,
    }
}

fn as_string(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn as_integer(value: &Value) -> Option<u32> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => Some(v),
        Value::U64(v) => v.try_into().ok(),
        Value::I8(v) => v.try_into().ok(),
        Value::I16(v) => v.try_into().ok(),
        Value::I32(v) => v.try_into().ok(),
        Value::I64(v) => v.try_into().ok(),
        _ => None,
    }
}

fn as_list<'a, T>(value: &'a Value, convert: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(items) => items.iter().map(convert).collect(),
        _ => None,
    }
}
