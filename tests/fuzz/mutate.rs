//! Mutations of an input.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// Numbers at the edges of what parsers handle.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFFFF,
    0x1_0000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// A mutant of an input: some random edits, among them parts of `other` and words of `dictionary`.
pub fn mutant(rng: &mut StdRng, input: &[u8], other: &[u8], dictionary: &[&[u8]]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let edits = 1 << rng.random_range(0..4);
    for _ in 0..edits {
        edit(rng, &mut bytes, other, dictionary);
    }
    bytes
}

fn edit(rng: &mut StdRng, bytes: &mut Vec<u8>, other: &[u8], dictionary: &[&[u8]]) {
    let at = rng.random_range(0..=bytes.len());
    let longest = 1 << rng.random_range(0..8);
    let run = rng.random_range(1..=longest);
    let end = bytes.len().min(at + run);
    match rng.random_range(0..10) {
        0 if at < end => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < end => bytes[at] = rng.random(),
        2 => drop(bytes.drain(at..end)),
        // A run again, somewhere.
        3 => {
            let copy = bytes[at..end].repeat(rng.random_range(1..4));
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        4 if rng.random_ratio(1, 4) => bytes.truncate(at),
        // The beginning of this input and the end of another.
        5 if rng.random_ratio(1, 4) => {
            let from = rng.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        6 => {
            let from = rng.random_range(0..=other.len());
            let part = &other[from..other.len().min(from + run)];
            bytes.splice(at..end, part.iter().copied());
        }
        7 => {
            let word = dictionary.choose(rng).copied().unwrap_or_default();
            let to = if rng.random() { at } else { end };
            bytes.splice(at..to, word.iter().copied());
        }
        // A number in binary, in place.
        8 => {
            let number = NUMBERS
                .choose(rng)
                .copied()
                .unwrap_or_default()
                .to_le_bytes();
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                *byte = *new;
            }
        }
        // A number in digits, for another one.
        _ => {
            let digit = |b: &u8| b.is_ascii_digit();
            let Some(start) = bytes[at..].iter().position(digit).map(|i| at + i) else {
                return;
            };
            let length = bytes[start..].iter().take_while(|b| digit(b)).count();
            let number = NUMBERS.choose(rng).copied().unwrap_or_default();
            bytes.splice(start..start + length, number.to_string().into_bytes());
        }
    }
}
