//! The shapes of an error's body: each API that the server speaks has its own.

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::ErrorReport;
use crate::server::request_id::RequestId;

/// Shape of the errors that a client expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `{"error": {"message", "type", "param", "code"}}`.
    #[default]
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}, "request_id"}`.
    Anthropic,
    /// `{"error": "message"}`.
    Ollama,
}

impl ErrorStyle {
    /// Style of a request to a path that has no style of its own: the headers of Anthropic's
    /// clients name their version, and all of Ollama's paths begin alike.
    pub fn guess(path: &str, headers: &HeaderMap) -> Self {
        if headers.contains_key("anthropic-version") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// Gives the response to a failed request the body of this style. Others stay as they are.
    pub fn apply(self, response: Response, id: &RequestId) -> Response {
        let Some(report) = response.extensions().get::<ErrorReport>() else {
            return response;
        };
        let body = match self {
            Self::OpenAi => return response,
            Self::Anthropic => anthropic(response.status(), &report.message, id),
            Self::Ollama => json!({"error": &*report.message}),
        };
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        let body = Json(body).into_response().into_body();
        Response::from_parts(parts, body)
    }
}

/// Anthropic's error object, also the data of an `error` event if a stream fails.
pub fn anthropic(status: StatusCode, message: &str, id: &RequestId) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    json!({
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": id.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::error::{ApiError, Unidentified};
    use axum::body::to_bytes;
    use axum::extract::Request;

    async fn body(style: ErrorStyle, error: ApiError) -> (StatusCode, Value) {
        let id = RequestId::of(Request::new(()).headers());
        let response = style.apply(error.into_response(), &id);
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        if style == ErrorStyle::Anthropic {
            assert_eq!(body["request_id"], id.as_str());
            body.as_object_mut().unwrap().remove("request_id");
        }
        (status, body)
    }

    #[tokio::test]
    async fn each_style_has_its_shape_under_the_same_status() {
        let error = || ApiError::invalid("max_tokens", "is missing");
        let message = "`max_tokens` is missing";
        let (status, anthropic) = body(ErrorStyle::Anthropic, error()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let inner = json!({"type": "invalid_request_error", "message": message});
        assert_eq!(anthropic, json!({"type": "error", "error": inner}));
        let ollama = body(ErrorStyle::Ollama, error()).await;
        assert_eq!(ollama, (StatusCode::BAD_REQUEST, json!({"error": message})));
        let openai = body(ErrorStyle::OpenAi, error()).await.1;
        assert_eq!(openai["error"]["param"], "max_tokens");
    }

    #[tokio::test]
    async fn the_types_of_anthropic_follow_the_status() {
        for (error, status, kind) in [
            (
                ApiError::InvalidApiKey(Unidentified::NoKey),
                401,
                "authentication_error",
            ),
            (
                ApiError::ForeignHost("a".to_owned()),
                403,
                "permission_error",
            ),
            (
                ApiError::UnknownUrl("/a".to_owned()),
                404,
                "not_found_error",
            ),
            (
                ApiError::MethodNotAllowed("PUT /a".to_owned()),
                405,
                "invalid_request_error",
            ),
            (
                ApiError::TooLarge {
                    what: "body",
                    limit: 1,
                },
                413,
                "request_too_large",
            ),
            (
                ApiError::QueueFull { retry_after: 1 },
                429,
                "rate_limit_error",
            ),
            (ApiError::StepFailed, 500, "api_error"),
            (ApiError::Draining, 503, "overloaded_error"),
        ] {
            let (found, answer) = body(ErrorStyle::Anthropic, error).await;
            assert_eq!(
                (found.as_u16(), &answer["error"]["type"]),
                (status, &json!(kind))
            );
        }
    }

    #[test]
    fn clients_of_other_apis_are_known_by_header_or_path() {
        let mut headers = HeaderMap::new();
        let guess = ErrorStyle::guess;
        assert_eq!(guess("/v1/messages/batches", &headers), ErrorStyle::OpenAi);
        assert_eq!(guess("/api/pull", &headers), ErrorStyle::Ollama);
        headers.insert("anthropic-version", "2023-06-01".parse().unwrap());
        let batches = guess("/v1/messages/batches", &headers);
        assert_eq!(batches, ErrorStyle::Anthropic);
    }
}
