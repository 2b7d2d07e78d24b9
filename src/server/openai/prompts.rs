//! Prompts in a field: `prompt` of completions, `input` of embeddings.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// A prompt as the request states it.
#[derive(Debug, PartialEq)]
pub enum RawPrompt {
    /// Text to encode.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Takes the field `name`: a string, a list of token ids, or a list of at most `max` of either.
/// Reads no more prompts than that.
///
/// # Errors
/// The field is missing, of another type, or has too many prompts.
pub fn take_prompts(
    fields: &mut Fields<'_>,
    name: &str,
    max: usize,
) -> Result<Vec<RawPrompt>, ApiError> {
    let too_many = Cell::new(false);
    let too_many = &too_many;
    let prompts = fields.take_seed(name, Prompts { max, too_many });
    if too_many.get() {
        let problem = format!("has more than {max} prompts, the most of one request");
        return Err(ApiError::invalid(name, problem));
    }
    match prompts? {
        None => Err(ApiError::invalid(name, "is missing")),
        Some(prompts) if prompts.is_empty() => Err(ApiError::invalid(name, "is empty")),
        Some(prompts) => Ok(prompts),
    }
}

/// Reader of the field.
struct Prompts<'a> {
    max: usize,
    too_many: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Prompts<'_> {
    type Value = Vec<RawPrompt>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Prompts<'_> {
    type Value = Vec<RawPrompt>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a string, a list of strings, a list of token ids, or a list of lists of token ids",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![RawPrompt::Text(text.to_owned())])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mixed = || A::Error::custom("its entries are of different types");
        let first = match items.next_element()? {
            None => return Ok(Vec::new()),
            Some(Item::Prompt(prompt)) => prompt,
            Some(Item::Id(id)) => {
                let mut ids = vec![id];
                while let Some(item) = items.next_element()? {
                    let Item::Id(id) = item else {
                        return Err(mixed());
                    };
                    ids.push(id);
                }
                return Ok(vec![RawPrompt::Ids(ids)]);
            }
        };
        let mut prompts = vec![first];
        while let Some(item) = items.next_element()? {
            let Item::Prompt(prompt) = item else {
                return Err(mixed());
            };
            if std::mem::discriminant(&prompt) != std::mem::discriminant(&prompts[0]) {
                return Err(mixed());
            }
            if prompts.len() == self.max {
                self.too_many.set(true);
                return Err(A::Error::custom("too many prompts"));
            }
            prompts.push(prompt);
        }
        Ok(prompts)
    }
}

/// One entry of a list.
enum Item {
    Id(u32),
    Prompt(RawPrompt),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
                let wrong = || E::custom(format_args!("{id} is not a token id"));
                u32::try_from(id).map(Item::Id).map_err(|_| wrong())
            }

            fn visit_f64<E: Error>(self, id: f64) -> Result<Item, E> {
                let is_id = id.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&id);
                let wrong = || E::custom(format_args!("{id} is not a token id"));
                is_id.then_some(Item::Id(id as u32)).ok_or_else(wrong)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Prompt(RawPrompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Prompt(RawPrompt::Ids(ids)))
            }
        }
        value.deserialize_any(ItemVisitor)
    }
}
