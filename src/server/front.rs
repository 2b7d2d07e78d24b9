//! What every request and response share, whichever route or refusal answers: the id, the shape of
//! errors, and the form of the path.

use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::Response;

use super::error::ErrorStyle;
use super::request_id::{RequestId, X_REQUEST_ID};

/// Anthropic's name of the header that holds a request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// What a response needs to know of its request.
#[derive(Clone, Debug)]
pub struct Front {
    id: RequestId,
    style: ErrorStyle,
}

impl Front {
    /// Gives a request its id, and takes a trailing slash off its path. `style` tells the shape of
    /// its errors by that path and the headers.
    pub fn begin(request: &mut Request, style: fn(&str, &HeaderMap) -> ErrorStyle) -> Self {
        if let Some(uri) = without_slash(request.uri()) {
            *request.uri_mut() = uri;
        }
        let id = RequestId::of(request.headers());
        let style = style(request.uri().path(), request.headers());
        let front = Self { id, style };
        request.extensions_mut().insert(front.id.clone());
        request.extensions_mut().insert(front.clone());
        front
    }

    /// Gives a response the id of its request, and an error the shape that its client expects.
    pub fn finish(&self, response: Response) -> Response {
        let mut response = self.style.apply(response, &self.id);
        let headers = response.headers_mut();
        if self.style == ErrorStyle::Anthropic {
            headers.insert(REQUEST_ID, self.id.header_value());
        }
        headers.insert(X_REQUEST_ID, self.id.header_value());
        response
    }
}

/// The URL without the slash that ends its path; `None` if there is none to take off.
fn without_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/')?;
    if path.is_empty() || path.ends_with('/') {
        return None;
    }
    let path = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_slash_is_taken_off() {
        for (uri, expected) in [
            ("/v1/models/", Some("/v1/models")),
            ("/v1/tickets/?limit=1", Some("/v1/tickets?limit=1")),
            ("http://a:1/v1/base/", Some("http://a:1/v1/base")),
            ("/", None),
            ("/?a", None),
            ("//", None),
            ("/v1/models", None),
            ("/v1/models//", None),
            ("*", None),
        ] {
            let found = without_slash(&uri.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{uri}");
        }
    }
}
