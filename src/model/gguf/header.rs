//! Check of a GGUF header before it is read: candle's reader keeps 32 bytes for each element of an
//! array, and trusts some values that it should not.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Seek};

/// Maximum size of a header. Those of the largest vocabularies have about 20 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Maximum number of metadata entries.
const MAX_ENTRIES: u64 = 1 << 16;
/// Maximum number of tensors.
const MAX_TENSORS: u64 = 1 << 17;
/// Maximum number of elements in all arrays together. A vocabulary of 256,000 tokens with its
/// scores, types and merges has about 1.3 million.
const MAX_ELEMENTS: u64 = 4 << 20;
/// Maximum length of a key or of a tensor's name, in bytes.
const MAX_NAME_BYTES: u64 = 1 << 10;
/// Maximum depth of arrays in arrays.
const MAX_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;
const ALIGNMENT: &str = "general.alignment";

/// Types of metadata values, as numbered by the format.
mod kind {
    /// A length and that many bytes.
    pub const STRING: u32 = 8;
    /// A type, a length and that many values.
    pub const ARRAY: u32 = 9;
}

/// Checks the header at the start of a file of `file_bytes` bytes: its counts and lengths fit the
/// file and the limits, names are distinct, and shapes have a size.
///
/// # Errors
/// A description of the first fault.
pub(super) fn check(reader: &mut (impl Read + Seek), file_bytes: u64) -> Result<(), String> {
    let mut header = Header {
        reader,
        left: file_bytes.min(MAX_HEADER_BYTES),
        is_whole: file_bytes <= MAX_HEADER_BYTES,
        elements: 0,
        narrow: false,
    };
    if header.bytes::<4>()? != *b"GGUF" {
        return Err("not a GGUF file: it does not begin with `GGUF`".to_owned());
    }
    let version = header.u32()?;
    if !(1..=3).contains(&version) {
        return Err(format!(
            "GGUF version {version} is not supported: expected 1, 2 or 3"
        ));
    }
    header.narrow = version == 1;
    let tensors = header.count("tensors", MAX_TENSORS)?;
    let entries = header.count("metadata entries", MAX_ENTRIES)?;
    let mut keys = HashSet::new();
    for _ in 0..entries {
        let key = header.name(&mut keys)?;
        header
            .entry(&key)
            .map_err(|fault| format!("metadata {key}: {fault}"))?;
    }
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let name = header.name(&mut names)?;
        header
            .tensor()
            .map_err(|fault| format!("tensor {name}: {fault}"))?;
    }
    Ok(())
}

/// Reader of a header that never reads past its end.
struct Header<'a, R> {
    reader: &'a mut R,
    /// Bytes that may still be read.
    left: u64,
    /// Whether the file ends where `left` does.
    is_whole: bool,
    /// Array elements so far.
    elements: u64,
    /// Whether lengths have 32 bits, as in version 1.
    narrow: bool,
}

impl<R: Read + Seek> Header<'_, R> {
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None if self.is_whole => {
                let left = self.left;
                return Err(format!(
                    "needs {bytes} bytes, but the file ends after {left}"
                ));
            }
            None => return Err(format!("the header exceeds {MAX_HEADER_BYTES} bytes")),
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.reader.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => "the file is cut short".to_owned(),
            _ => e.to_string(),
        })
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        self.take(bytes)?;
        // At most `MAX_HEADER_BYTES`.
        let skipped = self.reader.seek_relative(bytes as i64);
        skipped.map_err(|e| e.to_string())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A length or a dimension, of the version's width.
    fn size(&mut self) -> Result<u64, String> {
        if self.narrow {
            return Ok(self.u32()?.into());
        }
        self.u64()
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, String> {
        match self.size()? {
            count if count <= most => Ok(count),
            count => Err(format!("claims {count} {what}; at most {most} are read")),
        }
    }

    /// A key or a tensor's name, which must not be in `others`; adds it.
    fn name(&mut self, others: &mut HashSet<String>) -> Result<String, String> {
        let length = self.count("bytes in a name", MAX_NAME_BYTES)?;
        self.take(length)?;
        let mut name = vec![0; length as usize];
        self.read(&mut name)?;
        // As candle reads it.
        while name.last() == Some(&0) {
            name.pop();
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        let printable: String = name.chars().flat_map(char::escape_debug).collect();
        if !others.insert(name) {
            return Err(format!("the name {printable} appears twice"));
        }
        Ok(printable)
    }

    fn entry(&mut self, key: &str) -> Result<(), String> {
        let kind = self.u32()?;
        if key == ALIGNMENT {
            return self.alignment(kind);
        }
        self.value(kind, 0)
    }

    /// Checks the alignment of the tensors, which candle divides by.
    fn alignment(&mut self, kind: u32) -> Result<(), String> {
        let value: u64 = match kind {
            0 | 1 => self.bytes::<1>()?[0].into(),
            2 | 3 => u16::from_le_bytes(self.bytes()?).into(),
            4 | 5 => self.u32()?.into(),
            _ => return Err("expected a 32-bit integer".to_owned()),
        };
        if value.is_power_of_two() && value <= 1 << 16 {
            return Ok(());
        }
        Err(format!("{value} is not a power of two up to 65,536"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<(), String> {
        match kind {
            kind::STRING => {
                let length = self.size()?;
                self.skip(length)
            }
            kind::ARRAY => self.array(depth),
            _ => {
                let bytes = fixed_size(kind)?;
                self.skip(bytes)
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        if depth == MAX_DEPTH {
            return Err(format!("arrays are nested more than {MAX_DEPTH} deep"));
        }
        let kind = self.u32()?;
        let length = self.size()?;
        self.elements = self.elements.saturating_add(length);
        if self.elements > MAX_ELEMENTS {
            return Err(format!(
                "{length} elements are too many: all arrays together may have {MAX_ELEMENTS}"
            ));
        }
        if matches!(kind, kind::STRING | kind::ARRAY) {
            return (0..length).try_for_each(|_| self.value(kind, depth + 1));
        }
        self.skip(fixed_size(kind)? * length)
    }

    fn tensor(&mut self) -> Result<(), String> {
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "has {dimensions} dimensions, at most {MAX_DIMENSIONS} are supported"
            ));
        }
        let mut elements = 1u64;
        for _ in 0..dimensions {
            let size = self.size()?;
            elements = elements
                .checked_mul(size)
                .filter(|&elements| elements <= 1 << 48)
                .ok_or("its shape is too large")?;
        }
        self.skip(4 + 8) // dtype and offset
    }
}

/// Bytes of a value that is neither a string nor an array.
fn fixed_size(kind: u32) -> Result<u64, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(format!("unknown type {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn refusal(parts: &[&[u8]]) -> String {
        let file = parts.concat();
        check(&mut Cursor::new(&file), file.len() as u64).unwrap_err()
    }

    const START: &[u8] = b"GGUF\x03\0\0\0";

    fn counts(tensors: u64, entries: u64) -> Vec<u8> {
        [tensors.to_le_bytes(), entries.to_le_bytes()].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        let length = (text.len() as u64).to_le_bytes();
        [&length, text.as_bytes()].concat()
    }

    #[test]
    fn counts_and_lengths_beyond_the_file_or_the_limits() {
        assert_eq!(
            refusal(&[b"GGML\x03\0\0\0"]),
            "not a GGUF file: it does not begin with `GGUF`"
        );
        assert_eq!(
            refusal(&[b"GGU"]),
            "needs 4 bytes, but the file ends after 3"
        );
        assert_eq!(
            refusal(&[START, &counts(u64::MAX, 0)]),
            format!("claims {} tensors; at most 131072 are read", u64::MAX)
        );
        assert_eq!(
            refusal(&[START, &counts(0, 1), &[9; 8]]),
            "claims 651061555542690057 bytes in a name; at most 1024 are read"
        );
        let long = [START, &counts(0, 1), &text("a"), &[8, 0, 0, 0], &[255; 8]];
        assert_eq!(
            refusal(&long),
            format!(
                "metadata a: needs {} bytes, but the file ends after 0",
                u64::MAX
            )
        );
    }

    #[test]
    fn arrays_of_too_many_elements_or_too_deep() {
        let start = [START, &counts(0, 1), &text("a"), &[9, 0, 0, 0]].concat();
        let many = refusal(&[&start, &[0; 4], &(5u64 << 20).to_le_bytes()]);
        assert!(many.contains("5242880 elements are too many"), "{many}");
        let one = [&[9, 0, 0, 0][..], &1u64.to_le_bytes()].concat();
        let deep = refusal(&[&start, &one.repeat(5)]);
        assert_eq!(deep, "metadata a: arrays are nested more than 4 deep");
    }

    #[test]
    fn an_alignment_of_zero() {
        let zero = [
            START,
            &counts(0, 1),
            &text(ALIGNMENT),
            &[4, 0, 0, 0],
            &[0; 4],
        ];
        assert_eq!(
            refusal(&zero),
            "metadata general.alignment: 0 is not a power of two up to 65,536"
        );
    }

    #[test]
    fn names_that_repeat_and_shapes_without_a_size() {
        let entry = [&text("a")[..], &[0, 0, 0, 0, 7]].concat();
        let twice = refusal(&[START, &counts(0, 2), &entry, &entry]);
        assert_eq!(twice, "the name a appears twice");
        let huge = [2u32.to_le_bytes().as_slice(), &[255; 16], &[0; 12]].concat();
        let shape = refusal(&[START, &counts(1, 0), &text("t"), &huge]);
        assert_eq!(shape, "tensor t: its shape is too large");
    }
}
