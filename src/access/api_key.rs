//! API keys and their digests.

use std::fmt;
use std::str::FromStr;

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Lengths of keys that a user may choose, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 8..=256;

/// A secret API key. Its text never appears in `Debug` output.
#[derive(Clone)]
pub struct ApiKey(String);

/// A string that cannot be a key, since no HTTP client could send it or anyone could guess it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an API key has {} to {} printable ASCII characters without spaces; `tombola key add` makes \
     one",
    LENGTHS.start(), LENGTHS.end()
)]
pub struct ApiKeyError;

impl ApiKey {
    /// A new random key of 256 bits: `tb-` and 64 hexadecimal digits.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(std::io::Error::other)?;
        Ok(Self(format!("tb-{}", KeyDigest(bytes))))
    }

    /// The secret.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        if LENGTHS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ApiKeyError)
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// SHA-256 digest of a key, which is all that the server keeps of it. A key of 256 random bits
/// cannot be found by trial, so a slow hash would add nothing. Comparisons take constant time.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyDigest([u8; 32]);

/// A string that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`sha256` is not 64 lower-case hexadecimal digits")]
pub struct KeyDigestError;

impl KeyDigest {
    /// The digest of a presented key.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl ConstantTimeEq for KeyDigest {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for KeyDigest {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for KeyDigest {}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for KeyDigest {
    type Error = KeyDigestError;

    fn try_from(text: String) -> Result<Self, KeyDigestError> {
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(lower_hex) {
            return Err(KeyDigestError);
        }
        let mut digest = [0; 32];
        for (i, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| KeyDigestError)?;
        }
        Ok(Self(digest))
    }
}

impl From<KeyDigest> for String {
    fn from(digest: KeyDigest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_differ_and_are_keys() {
        let [a, b] = [(); 2].map(|()| ApiKey::generate().unwrap());
        assert_ne!(a.secret(), b.secret());
        assert!(a.secret().starts_with("tb-") && a.secret().len() == 3 + 64);
        assert_eq!(a.secret().parse::<ApiKey>().unwrap().secret(), a.secret());
        assert!(!format!("{a:?}").contains(&a.secret()[3..]));
    }

    #[test]
    fn keys_that_no_client_could_send_are_refused() {
        for text in ["", "short", "with a space", "with\nnewline", "schlüssel"] {
            assert_eq!(text.parse::<ApiKey>().err(), Some(ApiKeyError), "{text:?}");
        }
        assert!("a".repeat(257).parse::<ApiKey>().is_err());
    }

    #[test]
    fn digests_round_trip_and_tell_keys_apart() {
        let digest = KeyDigest::of("abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(KeyDigest::try_from(text.to_owned()), Ok(digest));
        assert_ne!(digest, KeyDigest::of("abd"));
        for text in ["", "ba78", &"g".repeat(64), &text.to_uppercase()] {
            assert!(KeyDigest::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
