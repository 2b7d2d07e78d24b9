//! Checks of a request's head. They are stricter than hyper's, which accepts bare line feeds,
//! a missing `Host` and ambiguous lengths, and answers what it refuses without a body.

use axum::http::Uri;
use httparse::Header;

use crate::server::error::ApiError;

/// Largest head (request line and headers), in bytes; also the bound of trailers.
pub const MAX_HEAD_BYTES: usize = 16 << 10;

/// Largest `Content-Length`: hyper refuses the last two numbers of 64 bits without a body.
const MAX_CONTENT_LENGTH: u64 = i64::MAX as u64;

/// Most headers of a request.
pub const MAX_HEADERS: usize = 100;

/// Length of the body that follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// `Content-Length`, or 0 without one.
    Sized(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Checks a complete head, with the empty line that ends it.
///
/// # Errors
/// A malformed head, a missing or second `Host`, an ambiguous body length (400), or too many
/// headers (431).
pub fn check(head: &[u8]) -> Result<BodyLength, ApiError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head).map_err(malformed)?.is_partial() {
        return Err(bad("the head is incomplete"));
    }
    if request.path.unwrap_or_default().parse::<Uri>().is_err() {
        return Err(bad("the URL of the request line is malformed"));
    }
    let http_11 = request.version == Some(1);
    match values(request.headers, "host").count() {
        0 if http_11 => return Err(bad("the header `Host` is missing")),
        0 | 1 => {}
        _ => return Err(bad("the header `Host` is given twice")),
    }
    body_length(request.headers, http_11)
}

/// Checks the first bytes of a head whose end has not arrived. Hyper parses those too, and later
/// ones only once the head is complete.
///
/// # Errors
/// The head is malformed however it goes on (400), or has too many headers (431).
pub fn check_begun(head: &[u8]) -> Result<(), ApiError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = httparse::Request::new(&mut headers).parse(head);
    parsed.map(|_| ()).map_err(malformed)
}

fn malformed(error: httparse::Error) -> ApiError {
    match error {
        httparse::Error::TooManyHeaders => {
            let limit = format!("{MAX_HEADERS} headers");
            ApiError::HeadTooLarge { limit }
        }
        httparse::Error::Version => bad("the version of HTTP must be 1.1 or 1.0"),
        error => bad(format!("the head is malformed: {error}")),
    }
}

fn body_length(headers: &[Header<'_>], http_11: bool) -> Result<BodyLength, ApiError> {
    let mut lengths = values(headers, "content-length");
    let mut codings = values(headers, "transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(BodyLength::Sized(0)),
        (Some(_), Some(_)) => Err(bad(
            "`Content-Length` and `Transfer-Encoding` exclude each other",
        )),
        (Some(length), None) => {
            if lengths.next().is_some() {
                return Err(bad("the header `Content-Length` is given twice"));
            }
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(length).ok().filter(|_| digits);
            match length.and_then(|length| length.parse().ok()) {
                Some(length) if length <= MAX_CONTENT_LENGTH => Ok(BodyLength::Sized(length)),
                Some(_) => Err(bad("the header `Content-Length` is too large")),
                None => Err(bad("the header `Content-Length` is not a length in bytes")),
            }
        }
        (None, Some(coding)) => {
            if codings.next().is_none() && coding.eq_ignore_ascii_case(b"chunked") && http_11 {
                Ok(BodyLength::Chunked)
            } else {
                Err(bad(
                    "the only `Transfer-Encoding` of a request is `chunked`, in HTTP/1.1",
                ))
            }
        }
    }
}

/// Values of the headers of this name, without surrounding white space.
fn values<'a>(headers: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

/// Error of malformed HTTP.
pub fn bad(problem: impl Into<String>) -> ApiError {
    ApiError::BadHttp(problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(head: &str) -> String {
        check(head.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_head_says_how_long_the_body_is() {
        let post = |headers: &str| check(format!("POST / HTTP/1.1\r\n{headers}\r\n").as_bytes());
        assert_eq!(post("Host: a\r\n").unwrap(), BodyLength::Sized(0));
        let sized = post("host: a\r\ncontent-length:  12 \r\n").unwrap();
        assert_eq!(sized, BodyLength::Sized(12));
        let chunked = post("HOST: a\r\nTransfer-Encoding: Chunked\r\n").unwrap();
        assert_eq!(chunked, BodyLength::Chunked);
        let old = check(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(old, BodyLength::Sized(0));
    }

    #[test]
    fn an_ambiguous_or_malformed_head_is_refused() {
        let get = |headers: &str| refusal(&format!("GET / HTTP/1.1\r\n{headers}\r\n"));
        assert!(get("").contains("`Host` is missing"));
        assert!(get("Host: a\r\nHost: a\r\n").contains("`Host` is given twice"));
        for (headers, problem) in [
            ("Content-Length: 1\r\nContent-Length: 1\r\n", "given twice"),
            ("Content-Length: 1, 1\r\n", "not a length"),
            ("Content-Length: +1\r\n", "not a length"),
            ("Content-Length: 99999999999999999999\r\n", "not a length"),
            ("Content-Length: 18446744073709551615\r\n", "too large"),
            (
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                "exclude each other",
            ),
            ("Transfer-Encoding: gzip, chunked\r\n", "only"),
            ("X: a\r\n folded\r\n", "malformed"),
            ("X : a\r\n", "malformed"),
            ("X: a\0b\r\n", "malformed"),
        ] {
            let message = get(&format!("Host: a\r\n{headers}"));
            assert!(message.contains(problem), "{headers:?}: {message}");
        }
        assert!(refusal("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").contains("only"));
        assert!(refusal("PRI * HTTP/2.0\r\n\r\n").contains("version"));
        assert!(refusal("GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n").contains("URL"));
    }

    #[test]
    fn headers_are_counted() {
        let head = |n: usize| {
            let headers = "X: a\r\n".repeat(n - 1);
            format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
        };
        assert!(check(head(MAX_HEADERS).as_bytes()).is_ok());
        assert!(refusal(&head(MAX_HEADERS + 1)).contains("100 headers"));
    }
}
