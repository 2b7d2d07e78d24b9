//! The canonical writer.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use half::bf16;
use serde::Serialize;

use super::{Dtype, Entry, MAX_HEADER_BYTES, METADATA};
use crate::ticket::TicketError;
use crate::ticket::error::brief;

/// A one-dimensional tensor to write.
pub(in crate::ticket) enum Slice<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
    Bf16(&'a [bf16]),
    F32(&'a [f32]),
}

/// Serialises a container: header keys and metadata in byte order, no spaces, padded to 8 bytes.
/// The data of 4-byte elements precedes that of 2-byte elements, each group in name order, so that
/// every tensor is aligned to its element size.
pub(in crate::ticket) fn encode(
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
    ordered.sort_by_key(|(_, slice)| Reverse(slice.dtype().bytes())); // stable
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
