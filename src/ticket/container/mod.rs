//! The safetensors container: a reader for untrusted files and a canonical writer.
//!
//! The `safetensors` crate is not used: it cannot detect duplicate keys, and it writes metadata in
//! hash-map order. It can open every file written here.

mod header;
mod write;

use std::collections::BTreeMap;

use half::bf16;
use serde::{Deserialize, Serialize};

pub(super) use self::header::parse_unique;
use self::header::{Header, parse_json, unique};
pub(super) use self::write::{Slice, encode};
use super::TicketError;
use super::error::brief;

/// Size limit of a header, read or written: 4 MiB, room for about 30,000 tensors. Parsing takes up
/// to some 20 bytes of memory per byte.
pub const MAX_HEADER_BYTES: u64 = 4 << 20;

const METADATA: &str = "__metadata__";

/// A file with its parsed header. Tensor offsets are in range and contiguous, without overlap.
pub(super) struct Container<'a> {
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    data: &'a [u8],
}

/// Header entry of one tensor; the fields are declared in byte order, for the canonical writer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    data_offsets: (u64, u64),
    dtype: String,
    shape: Vec<u64>,
}

/// Element types of tickets and flat files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    U16,
    U32,
    I32,
    Bf16,
    F32,
}

/// A one-dimensional tensor of a file. Its bytes may be unaligned.
pub(super) struct Array<'a> {
    pub dtype: Dtype,
    bytes: &'a [u8],
}

/// Parses a header alone and returns its metadata.
pub(super) fn metadata(header: &[u8]) -> Result<BTreeMap<String, String>, TicketError> {
    let header: Header = parse_json(header)?;
    unique(METADATA, header.metadata)
}

impl<'a> Container<'a> {
    /// Parses and checks the header. Allocations are bounded by the header's size.
    pub fn parse(file: &'a [u8]) -> Result<Self, TicketError> {
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(TicketError::TooShort { bytes: file.len() });
        };
        let bytes = u64::from_le_bytes(*length);
        if bytes > MAX_HEADER_BYTES {
            return Err(match foreign_kind(file) {
                Some(kind) => TicketError::ForeignFile(kind),
                None => TicketError::HeaderTooLarge { bytes },
            });
        }
        let available = rest.len();
        let (header, data) = rest
            .split_at_checked(bytes as usize)
            .ok_or(TicketError::HeaderCutShort { bytes, available })?;
        let header: Header = parse_json(header)?;
        let container = Self {
            metadata: unique(METADATA, header.metadata)?,
            tensors: unique("the header", header.tensors)?,
            data,
        };
        container.check_offsets()?;
        Ok(container)
    }

    /// Names of all tensors, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The one-dimensional tensor `name`, whose element type must be one of `expected`.
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
        // In range: `check_offsets` compared the end of every tensor with the data.
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

impl Dtype {
    /// Its name in a safetensors header.
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
    /// The elements as `u16`.
    pub fn u16(&self) -> Vec<u16> {
        self.elements(u16::from_le_bytes)
    }

    /// The elements as `u32`.
    pub fn u32(&self) -> Vec<u32> {
        self.elements(u32::from_le_bytes)
    }

    /// The elements as `i32`.
    pub fn i32(&self) -> Vec<i32> {
        self.elements(i32::from_le_bytes)
    }

    /// The elements as `bf16`.
    pub fn bf16(&self) -> Vec<bf16> {
        self.elements(bf16::from_le_bytes)
    }

    /// The elements as `f32`.
    pub fn f32(&self) -> Vec<f32> {
        self.elements(f32::from_le_bytes)
    }

    fn elements<const N: usize, T>(&self, from_le_bytes: fn([u8; N]) -> T) -> Vec<T> {
        let (elements, _) = self.bytes.as_chunks::<N>();
        elements.iter().map(|bytes| from_le_bytes(*bytes)).collect()
    }
}

/// Kind of a file uploaded by mistake, recognised by its first bytes. Only valid if the header
/// length is implausible, because a valid length may begin with any byte.
fn foreign_kind(file: &[u8]) -> Option<&'static str> {
    match file {
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive (a .pt or .bin is one, and holds a pickle)"),
        [0x80, 2..=5, ..] => Some("a pickle (.pt, .bin), which is never loaded"),
        [0x1f, 0x8b, ..] => Some("a gzip archive"),
        _ => None,
    }
}
