//! Request bodies: reading, parsing, and taking typed fields out of them, with errors that name
//! the field.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Time to read and discard the rest of a refused body: a client disconnected while it is
/// still writing may never see the response.
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads a whole body.
///
/// # Errors
/// The body exceeds `limit` bytes, or the connection breaks off.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::BadBody(error.to_string()))?;
        if bytes.len() + chunk.len() > limit {
            let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
            // Best effort: the response is the same if the time runs out.
            let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
            let (what, limit) = ("body", limit as u64);
            return Err(ApiError::TooLarge { what, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Fields of a JSON body that have not been taken yet.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body)
            .map(Self)
            .map_err(|error| ApiError::BadJson(brief(&error)))
    }

    /// Takes a field; `null` counts as absent.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => from_value(name, value).map(Some),
        }
    }

    /// Takes a number that must lie in `range`.
    pub fn take_in<T>(
        &mut self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, ApiError>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        let value = self.take(name)?;
        match value {
            Some(value) if !range.contains(&value) => {
                let (low, high) = range.into_inner();
                let problem = format!("must be between {low} and {high}, got {value}");
                Err(ApiError::invalid(name, problem))
            }
            value => Ok(value),
        }
    }

    /// Refuses a field unless it is absent, `null`, or one of the `harmless` values, which request
    /// nothing.
    pub fn refuse(
        &mut self,
        name: &str,
        harmless: &[Value],
        reason: &'static str,
    ) -> Result<(), ApiError> {
        match self.0.remove(name) {
            Some(value) if !value.is_null() && !harmless.contains(&value) => {
                let param = name.to_owned();
                Err(ApiError::Unsupported { param, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Deserialises the value of the field `param`.
pub fn from_value<T: DeserializeOwned>(param: &str, value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value)
        .map_err(|error| ApiError::invalid(param, format!("is malformed: {}", brief(&error))))
}

/// Message of a JSON error, which may quote the body, cut to a readable length.
fn brief(error: &serde_json::Error) -> String {
    const MAX_CHARS: usize = 200;
    let message = error.to_string();
    match message.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}
