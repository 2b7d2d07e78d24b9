//! Ticket metadata, stored in the header of the file.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::brief;
use super::{BaseManifest, Digest, TicketError};

const FORMAT: &str = "lota-ticket";
const VERSION: &str = "1";
/// Metadata key that marks a flat file; see [`super::import`].
pub(super) const SHAPE_OF: &str = "shape_of";
/// Size limit of `base.name` and of `license`.
const MAX_TEXT_BYTES: usize = 1024;
/// Size limit of `training`, as JSON.
pub const MAX_TRAINING_BYTES: usize = 64 << 10;
/// Share by which the stated density may differ from the real one, since writers round it.
const DENSITY_TOLERANCE: f64 = 0.01;

/// Metadata of a ticket. [`super::Ticket::bind`] checks the fields about the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Name that requests use; see [`validate_name`].
    pub name: String,
    /// Name of the base that the ticket was made for.
    pub base_name: String,
    /// Fingerprint of that base; see [`BaseManifest::fingerprint`].
    pub base_fingerprint: Digest,
    /// Nonzeros divided by the adaptable weights of the base, in (0, 1].
    pub density: f64,
    /// Licence of the ticket: an SPDX expression or free text.
    pub license: Option<String>,
    /// Provenance: data, steps, losses, seed, tool; at most [`MAX_TRAINING_BYTES`] of JSON. Numbers
    /// keep their value when a file is read and written again.
    pub training: Option<Value>,
}

impl Metadata {
    /// Metadata of a ticket of `nonzeros` positions for `base`, without licence and provenance.
    pub fn new(name: impl Into<String>, base: &BaseManifest, nonzeros: usize) -> Self {
        Self {
            name: name.into(),
            base_name: base.name.clone(),
            base_fingerprint: base.fingerprint,
            density: nonzeros as f64 / base.adaptable_weights() as f64,
            license: None,
            training: None,
        }
    }

    /// Parses the metadata of a header.
    pub(super) fn from_header(header: &BTreeMap<String, String>) -> Result<Self, TicketError> {
        check_format(header)?;
        let required = |key| {
            let value = header.get(key).map(String::as_str);
            value.ok_or(TicketError::MissingMetadata(key))
        };
        let base_fingerprint = required("base.fingerprint")?;
        let density = required("density")?;
        let training = || match header.get("training") {
            Some(text) => {
                check_training(text)?;
                serde_json::from_str(text)
                    .map(Some)
                    .map_err(|e| refuse("training", format!("is not JSON: {e}")))
            }
            None => Ok(None),
        };
        let metadata = Self {
            name: required("name")?.to_owned(),
            base_name: required("base.name")?.to_owned(),
            base_fingerprint: base_fingerprint.parse().map_err(|_| {
                let reason = "is not a SHA-256 digest of 64 lower-case hexadecimal digits";
                refuse("base.fingerprint", reason)
            })?,
            density: density.parse().map_err(|_| {
                let reason = format!("is `{}`, expected a number", brief(density));
                refuse("density", reason)
            })?,
            license: header.get("license").cloned(),
            training: training()?,
        };
        metadata.validate()?;
        Ok(metadata)
    }

    /// Serialises the metadata for a header: the inverse of [`Metadata::from_header`].
    pub(super) fn to_header(&self) -> Result<BTreeMap<String, String>, TicketError> {
        self.validate()?;
        let mut header = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), VERSION.to_owned()),
            ("name".to_owned(), self.name.clone()),
            ("base.name".to_owned(), self.base_name.clone()),
            (
                "base.fingerprint".to_owned(),
                self.base_fingerprint.to_string(),
            ),
            ("density".to_owned(), self.density.to_string()),
        ]);
        if let Some(license) = &self.license {
            header.insert("license".to_owned(), license.clone());
        }
        if let Some(training) = &self.training {
            let training = sorted(training).to_string();
            check_training(&training)?;
            header.insert("training".to_owned(), training);
        }
        Ok(header)
    }

    fn validate(&self) -> Result<(), TicketError> {
        validate_name(&self.name)?;
        check_text("base.name", &self.base_name)?;
        if let Some(license) = &self.license {
            check_text("license", license)?;
        }
        if !(self.density > 0.0 && self.density <= 1.0) {
            let reason = format!("is {}, expected a share above 0 and up to 1", self.density);
            return Err(refuse("density", reason));
        }
        Ok(())
    }

    /// Checks the stated density against the number of nonzeros.
    ///
    /// # Errors
    /// They differ by more than rounding.
    pub(super) fn check_density(
        &self,
        nonzeros: usize,
        base: &BaseManifest,
    ) -> Result<(), TicketError> {
        let weights = base.adaptable_weights();
        let density = nonzeros as f64 / weights as f64;
        if (self.density - density).abs() <= DENSITY_TOLERANCE * density {
            return Ok(());
        }
        let stated = self.density;
        let reason = format!(
            "is {stated}, but {nonzeros} of the base's {weights} adaptable weights change, which \
             is {density}"
        );
        Err(refuse("density", reason))
    }
}

/// Checks a ticket name: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`. Such a name is safe as a file name and
/// in a URL.
///
/// # Errors
/// [`TicketError::Name`] if `name` does not match.
pub fn validate_name(name: &str) -> Result<(), TicketError> {
    let start = name
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric);
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if start && name.len() <= 64 && name.bytes().all(rest) {
        return Ok(());
    }
    Err(TicketError::Name(name.chars().take(80).collect()))
}

/// Checks the format, then the version, then the keys, so that the message names the most basic
/// fault.
fn check_format(header: &BTreeMap<String, String>) -> Result<(), TicketError> {
    match header.get("format").map(String::as_str) {
        Some(FORMAT) => {}
        None if header.contains_key(SHAPE_OF) => return Err(TicketError::FlatFile),
        found => {
            let found = found.map_or("missing".to_owned(), |f| format!("`{}`", brief(f)));
            return Err(TicketError::NotATicket { found });
        }
    }
    match header.get("version").map(String::as_str) {
        Some(VERSION) => {}
        None => return Err(TicketError::MissingMetadata("version")),
        Some(other) => return Err(TicketError::Version(brief(other))),
    }
    let known = |key: &str| {
        let required = ["base.fingerprint", "base.name", "density", "format", "name"];
        required.contains(&key) || matches!(key, "version" | "license" | "training")
    };
    match header.keys().find(|key| !known(key)) {
        Some(key) => Err(TicketError::UnknownMetadata(brief(key))),
        None => Ok(()),
    }
}

fn check_text(key: &'static str, text: &str) -> Result<(), TicketError> {
    if text.trim().is_empty() {
        return Err(refuse(key, "is empty"));
    }
    if text.len() > MAX_TEXT_BYTES {
        let reason = format!("has {} bytes, at most {MAX_TEXT_BYTES} fit", text.len());
        return Err(refuse(key, reason));
    }
    if text.chars().any(char::is_control) {
        return Err(refuse(key, "holds a control character"));
    }
    Ok(())
}

fn check_training(json: &str) -> Result<(), TicketError> {
    if json.len() <= MAX_TRAINING_BYTES {
        return Ok(());
    }
    let bytes = json.len();
    let reason = format!("has {bytes} bytes of JSON, at most {MAX_TRAINING_BYTES} fit");
    Err(refuse("training", reason))
}

fn refuse(key: &'static str, reason: impl Into<String>) -> TicketError {
    let reason = reason.into();
    TicketError::MetadataValue { key, reason }
}

/// The same JSON with the keys of each object in byte order, so that equal values have equal bytes.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<_, _> = map.iter().collect();
            let entries = ordered.into_iter();
            Value::Object(entries.map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
