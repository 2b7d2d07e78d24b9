//! From the bytes of a body to single fields, each with errors that name it.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// How long a body that was refused is still read and thrown away: a client that is cut off while
/// it writes may never see the answer.
pub const LINGER: Duration = Duration::from_secs(2);

/// Reads a whole body of at most `limit` bytes.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::BadBody(error.to_string()))?;
        if bytes.len() + chunk.len() > limit {
            let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
            // Whether all of it came in time changes nothing.
            let _ = tokio::time::timeout(LINGER, rest).await;
            let (what, limit) = ("body", limit as u64);
            return Err(ApiError::TooLarge { what, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The fields of a JSON body that nobody has taken yet.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = serde_json::from_slice(body);
        fields.map(Self).map_err(|e| ApiError::BadJson(brief(&e)))
    }

    /// Takes a field; `null` is as good as absent.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => from_value(name, value).map(Some),
        }
    }

    /// Takes a number that has to lie in a range.
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

    /// Refuses a field unless it is absent, `null`, or one of the values that ask for nothing.
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

/// Turns a part of a body into what it should be.
pub fn from_value<T: DeserializeOwned>(param: &str, value: Value) -> Result<T, ApiError> {
    let value = serde_json::from_value(value);
    value.map_err(|error| ApiError::invalid(param, format!("is malformed: {}", brief(&error))))
}

/// A message that may quote the body, cut to a readable length.
fn brief(error: &serde_json::Error) -> String {
    const LONGEST: usize = 200;
    let message = error.to_string();
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}
