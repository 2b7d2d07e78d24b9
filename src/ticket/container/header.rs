//! Header parsing that keeps duplicate keys, so that they can be refused.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};

use super::{Entry, METADATA};
use crate::ticket::TicketError;
use crate::ticket::error::brief;

/// Parses a JSON object, refusing duplicate keys. `place` names the object in the message.
pub(in crate::ticket) fn parse_unique<T: DeserializeOwned>(
    place: &'static str,
    text: &str,
) -> Result<BTreeMap<String, T>, TicketError> {
    let Pairs(pairs) = parse_json(text.as_bytes())?;
    unique(place, pairs)
}

pub(super) fn parse_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, TicketError> {
    serde_json::from_slice(json).map_err(|e| TicketError::HeaderJson(brief(&e.to_string())))
}

/// Collects pairs into a map, refusing duplicate keys.
pub(super) fn unique<T>(
    place: &'static str,
    pairs: Vec<(String, T)>,
) -> Result<BTreeMap<String, T>, TicketError> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.contains_key(&key) {
            let key = brief(&key);
            return Err(TicketError::DuplicateKey { place, key });
        }
        map.insert(key, value);
    }
    Ok(map)
}

/// The header as written, including duplicate keys.
pub(super) struct Header {
    pub metadata: Vec<(String, String)>,
    pub tensors: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key != METADATA {
                        tensors.push((key, map.next_value()?));
                    } else if metadata.is_none() {
                        let Pairs(pairs) = map.next_value()?;
                        metadata = Some(pairs);
                    } else {
                        return Err(serde::de::Error::duplicate_field(METADATA));
                    }
                }
                let metadata = metadata.unwrap_or_default();
                Ok(Header { metadata, tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A JSON object as written, including duplicate keys.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}
