//! The id of a request, by which its response and its log lines are found.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// Header of the id, in requests and responses.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that a client may give, in bytes.
const MAX_BYTES: usize = 128;

/// Id of a request: the client's if it sent a usable one, else 32 random hexadecimal digits. It is
/// among the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Id of a request with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all(X_REQUEST_ID).iter();
        match (given.next(), given.next()) {
            (Some(id), None) if is_usable(id) => Self(id.to_str().unwrap_or_default().into()),
            _ => Self::random(),
        }
    }

    /// Id of a request without readable headers.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()).into())
    }

    /// The id: 1 to 128 printable ASCII characters, no spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the value of a header.
    pub fn header_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("printable ASCII is a header value")
    }
}

fn is_usable(id: &HeaderValue) -> bool {
    let id = id.as_bytes();
    (1..=MAX_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let id = parts.extensions.get().cloned();
        Ok(id.unwrap_or_else(|| Self::of(&parts.headers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usable_id_is_kept_and_any_other_replaced() {
        let of = |ids: &[&str]| {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append(
                    X_REQUEST_ID,
                    HeaderValue::from_bytes(id.as_bytes()).unwrap(),
                );
            }
            RequestId::of(&headers)
        };
        let longest = "x".repeat(MAX_BYTES);
        for id in ["7", "req_01-ü"].into_iter().chain([&*longest]) {
            assert_eq!(of(&[id]).as_str() == id, id.is_ascii(), "{id}");
        }
        let longer = "x".repeat(MAX_BYTES + 1);
        for ids in [&[][..], &[""], &["a b"], &["a\tb"], &[&longer], &["a", "b"]] {
            let id = of(ids);
            let digits = id.as_str().bytes().all(|b| b.is_ascii_hexdigit());
            assert!(digits && id.as_str().len() == 32, "{ids:?}: {id:?}");
            assert_ne!(id, of(ids));
        }
    }
}
