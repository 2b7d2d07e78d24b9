//! Encodings of request bodies: gzip of the bytes, and UTF-8 or UTF-16 of the text.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, Request, Response, header};
use futures_util::{Stream, StreamExt as _, stream};
use tower::{ServiceExt as _, service_fn};
use tower_http::decompression::Decompression;

use super::error::ApiError;

/// Coding of a body's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    /// Coding of a body with these headers. `accepted` is the value of `Accept-Encoding` in the
    /// answer to other codings.
    ///
    /// # Errors
    /// [`ApiError::UnsupportedEncoding`], with the name of the coding.
    pub fn of(headers: &HeaderMap, accepted: Accepted) -> Result<Self, ApiError> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let text: Vec<_> = values
            .map(|v| String::from_utf8_lossy(v.as_bytes()))
            .collect();
        let text = text.join(", ").trim().to_ascii_lowercase();
        match &*text {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" if accepted == Accepted::GzipToo => Ok(Self::Gzip),
            _ => Err(ApiError::UnsupportedEncoding {
                got: text.chars().take(64).collect(),
                accepted: accepted.header(),
            }),
        }
    }
}

/// The codings that a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    Identity,
    GzipToo,
}

impl Accepted {
    fn header(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::GzipToo => "gzip, identity",
        }
    }
}

/// A body on its way through the decoder. What is still to come can be read undecoded: to decode a
/// refused body only to drop it would serve a decompression bomb.
#[derive(Clone)]
pub struct Raw(Arc<Mutex<BodyDataStream>>);

impl Raw {
    /// Wraps a body.
    pub fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body.into_data_stream())))
    }

    /// The bytes as they arrive.
    pub fn stream(&self) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + use<> {
        let raw = Arc::clone(&self.0);
        stream::poll_fn(move |cx| {
            let mut raw = raw.lock().unwrap_or_else(PoisonError::into_inner);
            raw.poll_next_unpin(cx)
        })
    }

    /// The decoded body. Its compressed bytes may be at most `limit` too: gzip has members without
    /// content.
    pub async fn gunzipped(&self, limit: usize) -> Body {
        let mut chunks = self.stream();
        let mut left = limit;
        let bounded = stream::poll_fn(move |cx| {
            let polled = pin!(&mut chunks).poll_next(cx);
            polled.map(|chunk| {
                let chunk = chunk?;
                Some(chunk.and_then(|chunk| match left.checked_sub(chunk.len()) {
                    Some(rest) => {
                        left = rest;
                        Ok(chunk)
                    }
                    None => Err(too_large(limit)),
                }))
            })
        });
        decoded(Body::from_stream(last_byte_apart(bounded))).await
    }
}

/// The same bytes, the last of which is a chunk of its own, and no chunk is empty. The decoder
/// stops after the first member, and refuses a chunk behind that, but not the rest of a chunk.
fn last_byte_apart<S>(chunks: S) -> impl Stream<Item = Result<Bytes, axum::Error>>
where
    S: Stream<Item = Result<Bytes, axum::Error>>,
{
    let mut last = None;
    let ends = chunks.map(Some).chain(stream::once(ready(None)));
    ends.flat_map(move |chunk| {
        let pieces = match chunk {
            Some(Ok(mut bytes)) if !bytes.is_empty() => {
                let end = bytes.split_off(bytes.len() - 1);
                [last.replace(end), Some(bytes)].map(|piece| piece.map(Ok))
            }
            Some(Ok(_)) => [None, None],
            Some(Err(error)) => [Some(Err(error)), None],
            None => [last.take().map(Ok), None],
        };
        let some = |piece: &Result<Bytes, _>| !matches!(piece, Ok(bytes) if bytes.is_empty());
        stream::iter(pieces.into_iter().flatten().filter(some))
    })
}

fn too_large(limit: usize) -> axum::Error {
    let (what, limit) = ("body", limit as u64);
    let error = ApiError::TooLarge { what, limit };
    axum::Error::new(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Decodes a body by gzip. The decoder is tower-http's for responses, so the body becomes one.
async fn decoded(body: Body) -> Body {
    let mut response = Response::new(body);
    let gzip = header::HeaderValue::from_static("gzip");
    response
        .headers_mut()
        .insert(header::CONTENT_ENCODING, gzip);
    let mut response = Some(response);
    let service = service_fn(move |_: Request<()>| {
        let response = response.take().unwrap_or_default();
        ready(Ok::<_, Infallible>(response))
    });
    match Decompression::new(service).oneshot(Request::new(())).await {
        Ok(response) => Body::new(response.into_body()),
        Err(never) => match never {},
    }
}

/// Encoding of a body's text, as its media type states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charset {
    /// None, or one that is read as UTF-8.
    #[default]
    Utf8,
    /// UTF-16 of either byte order.
    Utf16,
    Utf16Le,
    Utf16Be,
}

impl Charset {
    /// The `charset` of a `Content-Type`.
    pub fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(header::CONTENT_TYPE);
        let value = value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let parameters = value.split(';').skip(1).filter_map(|p| p.split_once('='));
        let charset = parameters
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
            .map(|(_, value)| value.trim().trim_matches('"').to_ascii_lowercase())
            .next();
        match charset.as_deref() {
            Some("utf-16" | "utf16") => Self::Utf16,
            Some("utf-16le" | "utf16le") => Self::Utf16Le,
            Some("utf-16be" | "utf16be") => Self::Utf16Be,
            _ => Self::Utf8,
        }
    }

    /// The text in UTF-8, without a byte order mark. A mark counts more than the charset. UTF-8 is
    /// not checked.
    ///
    /// # Errors
    /// [`ApiError::BadJson`]: the text is no UTF-16.
    pub fn decode(self, bytes: Vec<u8>) -> Result<Vec<u8>, ApiError> {
        let (little, text) = match (&bytes[..], self) {
            ([0xEF, 0xBB, 0xBF, text @ ..], _) => return Ok(text.to_vec()),
            ([0xFF, 0xFE, text @ ..], _) => (true, text),
            ([0xFE, 0xFF, text @ ..], _) => (false, text),
            (_, Self::Utf8) => return Ok(bytes),
            (text, Self::Utf16Le) => (true, text),
            (text, Self::Utf16Be) => (false, text),
            // JSON begins with an ASCII character, one of whose bytes is zero.
            (text, Self::Utf16) => (text.first() != Some(&0), text),
        };
        let (pairs, []) = text.as_chunks::<2>() else {
            return Err(bad_utf_16());
        };
        let unit = |pair: &[u8; 2]| match little {
            true => u16::from_le_bytes(*pair),
            false => u16::from_be_bytes(*pair),
        };
        let text: Result<String, _> = char::decode_utf16(pairs.iter().map(unit)).collect();
        text.map(String::into_bytes).map_err(|_| bad_utf_16())
    }
}

fn bad_utf_16() -> ApiError {
    ApiError::BadJson("it is not valid UTF-16".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"prompt\": \"Grüße 🎟\"}";

    fn utf_16(little: bool) -> Vec<u8> {
        let bytes = |unit: u16| {
            if little {
                unit.to_le_bytes()
            } else {
                unit.to_be_bytes()
            }
        };
        TEXT.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn text_is_read_by_its_mark_or_its_charset() {
        let (le, be) = (utf_16(true), utf_16(false));
        for (bytes, charset) in [
            (TEXT.as_bytes().to_vec(), Charset::Utf8),
            ([b"\xEF\xBB\xBF", TEXT.as_bytes()].concat(), Charset::Utf8),
            ([b"\xFF\xFE", &le[..]].concat(), Charset::Utf8),
            ([b"\xFE\xFF", &be[..]].concat(), Charset::Utf8),
            ([b"\xFE\xFF", &be[..]].concat(), Charset::Utf16Le),
            (le.clone(), Charset::Utf16Le),
            (be.clone(), Charset::Utf16Be),
            (le.clone(), Charset::Utf16),
            (be.clone(), Charset::Utf16),
        ] {
            let text = charset.decode(bytes).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), TEXT, "{charset:?}");
        }
        for wrong in [&le[..3], b"{\0\0\xD8", b"\xFF\xFE{"] {
            assert!(
                Charset::Utf16Le.decode(wrong.to_vec()).is_err(),
                "{wrong:?}"
            );
        }
        assert!(Charset::Utf16.decode(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn charset_and_coding_are_read_from_the_headers() {
        let charset = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            Charset::of(&headers)
        };
        assert_eq!(charset("application/json"), Charset::Utf8);
        assert_eq!(charset("application/json; charset=latin1"), Charset::Utf8);
        assert_eq!(
            charset("application/json; Charset=\"UTF-16LE\""),
            Charset::Utf16Le
        );
        assert_eq!(
            charset("application/json; a=b;charset=utf-16"),
            Charset::Utf16
        );
        let coding = |value: &str, accepted| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, value.parse().unwrap());
            Coding::of(&headers, accepted).map_err(|error| error.to_string())
        };
        assert_eq!(coding("GZip", Accepted::GzipToo), Ok(Coding::Gzip));
        assert_eq!(coding("identity", Accepted::Identity), Ok(Coding::Identity));
        for wrong in ["br", "gzip, gzip", "deflate"] {
            let message = coding(wrong, Accepted::GzipToo).unwrap_err();
            assert!(message.contains(&format!("`{wrong}`")), "{message}");
        }
        assert!(coding("gzip", Accepted::Identity).is_err());
    }
}
