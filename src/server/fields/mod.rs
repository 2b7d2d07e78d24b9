//! Typed fields of a JSON body, with errors that name the field.

mod bounded;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor,
};
use serde_json::Value;
use serde_json::value::RawValue;

use self::bounded::{Bound, List, Map};
use super::error::ApiError;

/// Maximum number of fields of a body.
const MAX_FIELDS: usize = 256;

/// Fields of a JSON body that have not been taken yet. Each stays text until it is taken, so that
/// it costs no more than its bytes before its type and its bounds are known.
pub struct Fields<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Parses a JSON object.
    ///
    /// # Errors
    /// The body is not a JSON object, names a field twice, or has too many fields.
    pub fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body).map_err(|error| ApiError::BadJson(brief(error.to_string())))
    }

    /// Takes a field; `null` counts as absent, and a whole float as an integer.
    ///
    /// # Errors
    /// The value is not a `T`.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.take_raw(name) else {
            return Ok(None);
        };
        let value = serde_json::from_str(raw.get()).or_else(|error| {
            let integer = whole(raw.get()).and_then(|integer| serde_json::from_str(&integer).ok());
            integer.ok_or(error)
        });
        value.map(Some).map_err(|error| malformed(name, &error))
    }

    /// Takes the text of a field; `null` counts as absent.
    pub fn take_raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.0.remove(name).filter(|raw| !is_null(raw))
    }

    /// Drops a field that has this value, in JSON; returns whether it had.
    pub fn take_equal(&mut self, name: &str, value: &str) -> bool {
        let is_equal = self.0.get(name).is_some_and(|raw| equal(raw.get(), value));
        is_equal && self.0.remove(name).is_some()
    }

    /// Drops a field that is known and has no effect.
    pub fn discard(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Names of the fields that have not been taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(Cow::as_ref)
    }

    /// Takes a field by a seed, which bounds what it reads; `null` counts as absent.
    ///
    /// # Errors
    /// Those of the seed.
    pub fn take_seed<S: DeserializeSeed<'a>>(
        &mut self,
        name: &str,
        seed: S,
    ) -> Result<Option<S::Value>, ApiError> {
        let Some(raw) = self.take_raw(name) else {
            return Ok(None);
        };
        let mut value = serde_json::Deserializer::from_str(raw.get());
        let value = seed.deserialize(&mut value);
        value.map(Some).map_err(|error| malformed(name, &error))
    }

    /// Takes a list of at most `max` entries, of which no more are read.
    ///
    /// # Errors
    /// The list is longer, or an entry is not a `T`.
    pub fn take_list<T: DeserializeOwned>(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<Vec<T>>, ApiError> {
        let bound = Bound::new(max);
        let list = List {
            bound: &bound,
            or_string: false,
            entries: PhantomData,
        };
        within(name, max, self.take_seed(name, list), &bound)
    }

    /// Takes a string, or a list of at most `max` strings, of which no more are read.
    ///
    /// # Errors
    /// The list is longer, or the value is neither.
    pub fn take_strings(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<Vec<String>>, ApiError> {
        let bound = Bound::new(max);
        let strings = List {
            bound: &bound,
            or_string: true,
            entries: PhantomData,
        };
        within(name, max, self.take_seed(name, strings), &bound)
    }

    /// Takes an object of at most `max` entries with distinct keys, of which no more are read.
    ///
    /// # Errors
    /// The object is larger, repeats a key, or a value is not a `T`.
    pub fn take_map<T: DeserializeOwned>(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<BTreeMap<String, T>>, ApiError> {
        let bound = Bound::new(max);
        let map = Map {
            bound: &bound,
            entries: PhantomData,
        };
        within(name, max, self.take_seed(name, map), &bound)
    }

    /// Takes a number that must lie in `range`.
    ///
    /// # Errors
    /// The value is not a number of this type, or outside the range.
    pub fn take_in<T>(
        &mut self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, ApiError>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        let value = self.take(name)?;
        match value {
            Some(value) if !range.contains(&value) => {
                let (low, high) = range.into_inner();
                let problem = format!("must be between {low} and {high}, got {value}");
                Err(ApiError::invalid(name, problem))
            }
            value => Ok(value),
        }
    }

    /// Refuses a field unless it is absent, `null`, or one of the `harmless` values (in JSON),
    /// which request nothing.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`] with this reason.
    pub fn refuse(
        &mut self,
        name: &str,
        harmless: &[&str],
        reason: &'static str,
    ) -> Result<(), ApiError> {
        match self.take_raw(name) {
            Some(raw) if !harmless.iter().any(|harmless| equal(raw.get(), harmless)) => {
                let param = name.to_owned();
                Err(ApiError::Unsupported { param, reason })
            }
            _ => Ok(()),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(Name(name)) = map.next_key()? {
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom(format_args!(
                    "it has more than {MAX_FIELDS} fields"
                )));
            }
            if fields.contains_key(&name) {
                let name = brief(name.into_owned());
                return Err(A::Error::custom(format_args!(
                    "the field `{name}` appears twice"
                )));
            }
            fields.insert(name, map.next_value()?);
        }
        Ok(Fields(fields))
    }
}

/// The name of a field, borrowed from the body unless it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// The value of a bounded field, with an error that states the bound if it was exceeded.
fn within<T>(
    name: &str,
    max: usize,
    value: Result<T, ApiError>,
    bound: &Bound,
) -> Result<T, ApiError> {
    if bound.is_exceeded() {
        let problem = format!("has more than {max} entries, the most that are allowed");
        return Err(ApiError::invalid(name, problem));
    }
    value
}

/// Deserialises the value at the path `param` of the body.
///
/// # Errors
/// The value is not a `T`.
pub fn from_value<T: DeserializeOwned>(param: &str, value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| malformed(param, &error))
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// The integer that a whole float equals, in JSON: clients of languages without integers send
/// `16.0`.
fn whole(number: &str) -> Option<String> {
    /// Floats up to here tell all integers apart.
    const MOST: f64 = (1_u64 << 53) as f64;
    let number: f64 = number.parse().ok()?;
    (number.fract() == 0.0 && number.abs() <= MOST).then(|| format!("{}", number as i64))
}

/// Whether two JSON texts have the same value. `harmless` is short, and so is a value equal to it.
fn equal(value: &str, harmless: &str) -> bool {
    /// More bytes than any harmless value has, with spaces.
    const LONGEST: usize = 64;
    if value.len() > LONGEST {
        return false;
    }
    let parsed = [value, harmless].map(|text| serde_json::from_str::<Value>(text).ok());
    let [Some(value), Some(harmless)] = parsed else {
        return false;
    };
    match (value.as_f64(), harmless.as_f64()) {
        (Some(value), Some(harmless)) => value == harmless,
        _ => value == harmless,
    }
}

/// Error of the value at `param`. The position that the JSON error states is left out: it counts
/// from the value's start, not from the body's.
fn malformed(param: &str, error: &serde_json::Error) -> ApiError {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&position).unwrap_or(&message);
    ApiError::invalid(
        param,
        format!("is malformed: {}", brief(message.to_owned())),
    )
}

/// Message that may quote the body, cut to a readable length.
pub fn brief(message: String) -> String {
    const MAX_CHARS: usize = 200;
    match message.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Result<Fields<'_>, String> {
        Fields::parse(body.as_bytes()).map_err(|error| error.to_string())
    }

    fn refusal<T>(result: Result<T, ApiError>) -> String {
        result.err().expect("a refusal").to_string()
    }

    #[test]
    fn a_field_that_appears_twice_is_refused_by_name() {
        let error = fields(r#"{"n": 1, "stop": "a", "n": 2}"#).err().unwrap();
        assert!(error.contains("the field `n` appears twice"), "{error}");
        // Also if one of them is spelled with escapes.
        let error = fields(r#"{"n": 1, "\u006e": 2}"#).err().unwrap();
        assert!(error.contains("the field `n` appears twice"), "{error}");
    }

    #[test]
    fn a_body_of_too_many_fields_is_refused() {
        let body = |count: usize| {
            let names: Vec<_> = (0..count).map(|i| format!("\"f{i}\": 0")).collect();
            format!("{{{}}}", names.join(","))
        };
        assert!(fields(&body(MAX_FIELDS)).is_ok());
        let error = fields(&body(MAX_FIELDS + 1)).err().unwrap();
        assert!(error.contains("more than 256 fields"), "{error}");
    }

    #[test]
    fn nesting_of_any_depth_is_skipped_or_refused_without_recursion() {
        let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        let body = format!("{{\"unknown\": {deep}, \"messages\": {deep}, \"tools\": {deep}}}");
        let mut fields = fields(&body).unwrap();
        let error = refusal(fields.take::<Value>("messages"));
        assert_eq!(error, "`messages` is malformed: recursion limit exceeded");
        assert!(fields.refuse("tools", &["[]"], "no").is_err());
        assert_eq!(fields.take::<usize>("n").unwrap(), None);
        // Objects too, and a nesting that is never closed.
        let body = format!("{{\"metadata\": {}", "{\"a\":".repeat(1 << 20));
        assert!(Fields::parse(body.as_bytes()).is_err());
    }

    #[test]
    fn a_list_is_read_no_further_than_its_bound() {
        let mut fields = fields(r#"{"a": [1, 2], "b": [1, 2, 3, "not a number"]}"#).unwrap();
        assert_eq!(fields.take_list("a", 2).unwrap(), Some(vec![1, 2]));
        let error = refusal(fields.take_list::<u32>("b", 2));
        assert_eq!(
            error,
            "`b` has more than 2 entries, the most that are allowed"
        );
    }

    #[test]
    fn a_whole_float_is_an_integer() {
        let mut fields = fields(r#"{"n": 2.0, "k": 1e3, "seed": -0.0, "top_p": 1}"#).unwrap();
        assert_eq!(fields.take::<usize>("n").unwrap(), Some(2));
        assert_eq!(fields.take::<i64>("k").unwrap(), Some(1000));
        assert_eq!(fields.take::<i64>("seed").unwrap(), Some(0));
        assert_eq!(fields.take::<f32>("top_p").unwrap(), Some(1.0));
    }

    #[test]
    fn harmless_values_are_compared_by_value() {
        let body = r#"{"a": 1.0, "b": {"type" : "text"}, "c": [], "d": 2}"#;
        let mut fields = fields(body).unwrap();
        assert!(fields.refuse("a", &["1"], "no").is_ok());
        assert!(fields.refuse("b", &[r#"{"type":"text"}"#], "no").is_ok());
        assert!(fields.refuse("c", &["[]"], "no").is_ok());
        let error = refusal(fields.refuse("d", &["1"], "no"));
        assert_eq!(error, "`d` is not supported: no");
        assert_eq!(fields.names().count(), 0);
    }

    #[test]
    fn extreme_numbers_are_refused_by_field() {
        let huge = format!("1{}", "0".repeat(400));
        let body = format!(
            r#"{{"max_tokens": {huge}, "seed": -9223372036854775809, "temperature": 1e400,
                "top_k": 1.5, "n": -1.0, "top_p": -{huge}}}"#
        );
        let mut fields = fields(&body).unwrap();
        for error in [
            refusal(fields.take::<usize>("max_tokens")),
            refusal(fields.take::<i64>("seed")),
            refusal(fields.take::<f32>("temperature")),
            refusal(fields.take::<i64>("top_k")),
            refusal(fields.take::<usize>("n")),
            refusal(fields.take::<f32>("top_p")),
        ] {
            assert!(
                error.contains("is malformed: ") && error.len() < 300,
                "{error}"
            );
            assert!(!error.contains(" column "), "{error}");
        }
    }
}
