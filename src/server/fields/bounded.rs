//! Readers of lists and maps that stop at the first entry too many.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer as _, MapAccess,
    SeqAccess, Visitor,
};

use super::brief;

/// Number of entries that a field may have; remembers whether one had more.
#[derive(Debug)]
pub(super) struct Bound {
    max: usize,
    exceeded: Cell<bool>,
}

impl Bound {
    /// A bound that no field has exceeded yet.
    pub fn new(max: usize) -> Self {
        let exceeded = Cell::new(false);
        Self { max, exceeded }
    }

    /// Whether a field had more entries.
    pub fn is_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    fn check<E: Error>(&self, entries: usize) -> Result<(), E> {
        if entries < self.max {
            return Ok(());
        }
        self.exceeded.set(true);
        Err(E::custom("too many entries"))
    }
}

/// Reader of a list, or of a single string in place of one if `or_string` is set.
pub(super) struct List<'a, T> {
    pub bound: &'a Bound,
    pub or_string: bool,
    pub entries: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for List<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for List<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.or_string {
            "a string or a list of strings"
        } else {
            "a list"
        })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        if !self.or_string {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        let text: StrDeserializer<'_, E> = text.into_deserializer();
        Ok(vec![T::deserialize(text)?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = seq.next_element()? {
            self.bound.check(entries.len())?;
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// Reader of an object whose keys are distinct.
pub(super) struct Map<'a, T> {
    pub bound: &'a Bound,
    pub entries: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Map<'_, T> {
    type Value = BTreeMap<String, T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Map<'_, T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            self.bound.check(entries.len())?;
            if entries.contains_key(&key) {
                let key = brief(key);
                return Err(A::Error::custom(format_args!(
                    "the key `{key}` appears twice"
                )));
            }
            entries.insert(key, map.next_value()?);
        }
        Ok(entries)
    }
}
