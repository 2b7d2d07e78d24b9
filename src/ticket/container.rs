//! The safetensors container, read without trust and written canonically.
//!
//! Ours rather than the `safetensors` crate's, which cannot see a duplicate key and writes metadata
//! in the order of a hash map. Every file written here opens with the crate.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use half::bf16;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use super::TicketError;
use super::error::brief;

/// The longest header that is read or written: 16 MiB, room for 100,000 tensors.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;

const METADATA: &str = "__metadata__";

/// A parsed header over the file's data: offsets are in range, contiguous and without overlap.
pub(super) struct Container<'a> {
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    data: &'a [u8],
}

/// One tensor of a header, fields in byte order.
#[derive(Debug, DeriveDeserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    data_offsets: (u64, u64),
    dtype: String,
    shape: Vec<u64>,
}

/// The element types that tickets and flat files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    U16,
    U32,
    I32,
    Bf16,
    F32,
}

/// A one-dimensional tensor of a file; its bytes need not be aligned.
pub(super) struct Array<'a> {
    pub dtype: Dtype,
    bytes: &'a [u8],
}

/// A one-dimensional tensor to write.
pub(super) enum Slice<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
    Bf16(&'a [bf16]),
    F32(&'a [f32]),
}

impl<'a> Container<'a> {
    /// Parses the header. Allocates no more than the header's own size warrants.
    pub fn parse(file: &'a [u8]) -> Result<Self, TicketError> {
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(TicketError::TooShort { bytes: file.len() });
        };
        let bytes = u64::from_le_bytes(*length);
        if bytes > MAX_HEADER_BYTES {
            let foreign = foreign_kind(file).map(TicketError::ForeignFile);
            return Err(foreign.unwrap_or(TicketError::HeaderTooLarge { bytes }));
        }
        let available = rest.len();
        let split = rest.split_at_checked(bytes as usize);
        let (header, data) = split.ok_or(TicketError::HeaderCutShort { bytes, available })?;
        let header: Header = parse_json(header)?;
        let container = Self {
            metadata: unique(METADATA, header.metadata)?,
            tensors: unique("the header", header.tensors)?,
            data,
        };
        container.check_offsets()?;
        Ok(container)
    }

    /// The names of all tensors, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The one-dimensional tensor `name`, of one of the `expected` types.
    pub fn array(&self, name: &str, expected: &[Dtype]) -> Result<Array<'a>, TicketError> {
        let tensor = || brief(name);
        let Some(entry) = self.tensors.get(name) else {
            return Err(TicketError::MissingTensor(tensor()));
        };
        let Some(&dtype) = expected.iter().find(|d| d.name() == entry.dtype) else {
            let names: Vec<_> = expected.iter().map(|d| d.name()).collect();
            return Err(TicketError::Dtype {
                tensor: tensor(),
                found: brief(&entry.dtype),
                expected: names.join(" or "),
            });
        };
        let [length] = entry.shape[..] else {
            return Err(TicketError::Dimensions {
                tensor: tensor(),
                dimensions: entry.shape.len(),
            });
        };
        // In range: `check_offsets` held the end of every tensor against the data.
        let bytes = &self.data[entry.data_offsets.0 as usize..entry.data_offsets.1 as usize];
        if length.checked_mul(dtype.bytes() as u64) != Some(bytes.len() as u64) {
            return Err(TicketError::ByteLength {
                tensor: tensor(),
                length,
                dtype: dtype.name(),
                bytes: bytes.len(),
            });
        }
        Ok(Array { dtype, bytes })
    }

    fn check_offsets(&self) -> Result<(), TicketError> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut expected = 0;
        for (name, entry) in tensors {
            let (start, end) = entry.data_offsets;
            if start != expected || end < start {
                return Err(TicketError::Offsets {
                    tensor: brief(name),
                    start,
                    end,
                    expected,
                });
            }
            expected = end;
        }
        let found = self.data.len() as u64;
        match found.checked_sub(expected) {
            Some(0) => Ok(()),
            Some(trailing) => Err(TicketError::TrailingBytes(trailing)),
            None => Err(TicketError::DataCutShort { expected, found }),
        }
    }
}

/// Writes a container: header keys and metadata in byte order, no spaces, padded to 8 bytes; the
/// data of 4-byte elements before that of 2-byte elements, then by name, so that each tensor is
/// aligned to its element.
pub(super) fn encode(
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, Slice<'_>>,
) -> Result<Vec<u8>, TicketError> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Item<'a> {
        Metadata(&'a BTreeMap<String, String>),
        Tensor(Entry),
    }
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, slice)| std::cmp::Reverse(slice.dtype().bytes())); // stable
    let mut header = BTreeMap::from([(METADATA, Item::Metadata(metadata))]);
    let mut end = 0;
    for (name, slice) in &ordered {
        let start = end;
        end += (slice.len() * slice.dtype().bytes()) as u64;
        let entry = Entry {
            data_offsets: (start, end),
            dtype: slice.dtype().name().to_owned(),
            shape: vec![slice.len() as u64],
        };
        header.insert(name.as_str(), Item::Tensor(entry));
    }
    let to_json_error = |e: serde_json::Error| TicketError::HeaderJson(brief(&e.to_string()));
    let mut header = serde_json::to_vec(&header).map_err(to_json_error)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let bytes = header.len() as u64;
    if bytes > MAX_HEADER_BYTES {
        return Err(TicketError::HeaderTooLarge { bytes });
    }
    let mut file = Vec::with_capacity(8 + header.len() + end as usize);
    file.extend(bytes.to_le_bytes());
    file.extend(header);
    for (_, slice) in ordered {
        slice.append_to(&mut file);
    }
    Ok(file)
}

/// Parses a JSON object whose keys must not repeat.
pub(super) fn parse_unique<T: DeserializeOwned>(
    place: &'static str,
    text: &str,
) -> Result<BTreeMap<String, T>, TicketError> {
    let Pairs(pairs) = parse_json(text.as_bytes())?;
    unique(place, pairs)
}

impl Dtype {
    /// The name that safetensors gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U16 => "U16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::U16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
        }
    }
}

impl Array<'_> {
    pub fn u16(&self) -> Vec<u16> {
        self.elements(u16::from_le_bytes)
    }

    pub fn u32(&self) -> Vec<u32> {
        self.elements(u32::from_le_bytes)
    }

    pub fn i32(&self) -> Vec<i32> {
        self.elements(i32::from_le_bytes)
    }

    pub fn bf16(&self) -> Vec<bf16> {
        self.elements(bf16::from_le_bytes)
    }

    pub fn f32(&self) -> Vec<f32> {
        self.elements(f32::from_le_bytes)
    }

    fn elements<const N: usize, T>(&self, from_le_bytes: fn([u8; N]) -> T) -> Vec<T> {
        let (elements, _) = self.bytes.as_chunks::<N>();
        elements.iter().map(|bytes| from_le_bytes(*bytes)).collect()
    }
}

impl Slice<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::U16(_) => Dtype::U16,
            Self::U32(_) => Dtype::U32,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F32(_) => Dtype::F32,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::U16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn append_to(&self, file: &mut Vec<u8>) {
        match self {
            Self::U16(values) => file.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::U32(values) => file.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::Bf16(values) => file.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F32(values) => file.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }
}

/// What else people upload, told by its first bytes. Asked only after the header's length made no
/// sense: a length may begin with any byte.
fn foreign_kind(file: &[u8]) -> Option<&'static str> {
    match file {
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive (a .pt or .bin is one, and holds a pickle)"),
        [0x80, 2..=5, ..] => Some("a pickle (.pt, .bin), which is never loaded"),
        [0x1f, 0x8b, ..] => Some("a gzip archive"),
        _ => None,
    }
}

fn parse_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, TicketError> {
    serde_json::from_slice(json).map_err(|e| TicketError::HeaderJson(brief(&e.to_string())))
}

fn unique<T>(
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

/// The header as written, duplicates and all.
struct Header {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, Entry)>,
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

/// A JSON object as written, duplicates and all.
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
