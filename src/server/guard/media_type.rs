//! Media types of request bodies. A web page can send a foreign server only a few types without
//! asking it first, and JSON is not among them.

use axum::http::{HeaderMap, header};

use crate::server::encoding::{Accepted, Coding};
use crate::server::error::ApiError;

/// The body that a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// None, or one that is ignored.
    Any,
    /// JSON.
    Json,
    /// A multipart form.
    Form,
}

impl BodyKind {
    /// Refuses a body of another kind, or one that is compressed in a way that is not supported.
    ///
    /// # Errors
    /// [`ApiError::UnsupportedMediaType`] or [`ApiError::UnsupportedEncoding`].
    pub fn check(self, headers: &HeaderMap) -> Result<(), ApiError> {
        let value = headers.get(header::CONTENT_TYPE);
        let value = value.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let essence = value.as_deref().unwrap_or_default().split(';').next();
        let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
        let (expected, matches) = match self {
            Self::Any => return Ok(()),
            Self::Json => ("application/json", is_json(&essence)),
            Self::Form => ("multipart/form-data", essence == "multipart/form-data"),
        };
        if matches {
            let accepted = match self {
                Self::Form => Accepted::Identity,
                Self::Json | Self::Any => Accepted::GzipToo,
            };
            return Coding::of(headers, accepted).map(|_| ());
        }
        let got = essence.chars().take(64).collect();
        Err(ApiError::UnsupportedMediaType { expected, got })
    }
}

fn is_json(essence: &str) -> bool {
    let suffixed = essence.starts_with("application/") && essence.ends_with("+json");
    essence == "application/json" || suffixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json_and_only_a_form_is_a_form() {
        let accepts = |kind: BodyKind, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            kind.check(&headers).is_ok()
        };
        for value in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/problem+json",
        ] {
            assert!(accepts(BodyKind::Json, value), "{value}");
            assert!(!accepts(BodyKind::Form, value), "{value}");
        }
        for value in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "json",
        ] {
            assert!(!accepts(BodyKind::Json, value), "{value}");
            assert!(accepts(BodyKind::Any, value), "{value}");
        }
        assert!(accepts(BodyKind::Form, "multipart/form-data; boundary=x"));
        assert!(BodyKind::Json.check(&HeaderMap::new()).is_err());
    }
}
