//! The table of errors: status, OpenAI's type and code, pause before a retry, field.

use axum::http::StatusCode;

use super::ApiError;

impl ApiError {
    /// Row of the table: status, OpenAI's error type, and code.
    pub(super) fn table_row(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Invalid { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_value")),
            Self::Unsupported { .. } => {
                let code = Some("unsupported_parameter");
                (StatusCode::BAD_REQUEST, INVALID, code)
            }
            Self::UnknownField(_) => (StatusCode::BAD_REQUEST, INVALID, Some("unknown_field")),
            Self::BadJson(_) | Self::BadForm(_) | Self::BadBody(_) => {
                (StatusCode::BAD_REQUEST, INVALID, Some("invalid_body"))
            }
            Self::BadHttp(_) => (StatusCode::BAD_REQUEST, INVALID, Some("bad_http")),
            Self::HeadTooLarge { .. } => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                (status, INVALID, Some("headers_too_large"))
            }
            Self::RequestTimeout(_) => {
                let code = Some("request_timeout");
                (StatusCode::REQUEST_TIMEOUT, INVALID, code)
            }
            Self::ContextLength { .. } | Self::PromptBytes { .. } => {
                let code = Some("context_length_exceeded");
                (StatusCode::BAD_REQUEST, INVALID, code)
            }
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::TicketNotFound(_) => (StatusCode::NOT_FOUND, INVALID, Some("ticket_not_found")),
            Self::TicketExists(_) | Self::NameTaken(_) => {
                (StatusCode::CONFLICT, INVALID, Some("ticket_exists"))
            }
            Self::PreconditionFailed(_) => {
                let code = Some("precondition_failed");
                (StatusCode::PRECONDITION_FAILED, INVALID, code)
            }
            Self::PinsTooLarge(_) => (StatusCode::CONFLICT, INVALID, Some("pins_too_large")),
            Self::PublicTicket(_) => (StatusCode::FORBIDDEN, INVALID, Some("forbidden")),
            Self::InvalidTicket(_) => {
                let code = Some("invalid_ticket");
                (StatusCode::UNPROCESSABLE_ENTITY, INVALID, code)
            }
            Self::BrokenTicket => {
                let code = Some("broken_ticket");
                (StatusCode::UNPROCESSABLE_ENTITY, INVALID, code)
            }
            Self::Constraint(_) => {
                let code = Some("constraint_failed");
                (StatusCode::UNPROCESSABLE_ENTITY, INVALID, code)
            }
            Self::BrokenBase => {
                let code = Some("broken_base");
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, code)
            }
            Self::TooLarge { .. } => {
                let code = Some("request_too_large");
                (StatusCode::PAYLOAD_TOO_LARGE, INVALID, code)
            }
            Self::InvalidApiKey(_) => {
                let code = Some("invalid_api_key");
                (StatusCode::UNAUTHORIZED, INVALID, code)
            }
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, INVALID, Some("forbidden")),
            Self::ForeignHost(_) | Self::ForeignOrigin(_) => {
                (StatusCode::FORBIDDEN, INVALID, Some("foreign_origin"))
            }
            Self::UnsupportedMediaType { .. } => {
                let code = Some("unsupported_media_type");
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, code)
            }
            Self::UnsupportedEncoding { .. } => {
                let code = Some("unsupported_encoding");
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, code)
            }
            Self::TenantBusy { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                (status, "rate_limit_error", Some("tenant_limit"))
            }
            Self::TenantStorage(_) => (StatusCode::FORBIDDEN, INVALID, Some("tenant_limit")),
            Self::UnknownUrl(_) => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url")),
            Self::MethodNotAllowed(_) => {
                let code = Some("method_not_allowed");
                (StatusCode::METHOD_NOT_ALLOWED, INVALID, code)
            }
            Self::QueueFull { .. } | Self::ShareFull { .. } | Self::TicketLineFull { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                (status, "rate_limit_error", Some("queue_full"))
            }
            Self::UploadQueueFull { .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                (status, "rate_limit_error", Some("upload_queue_full"))
            }
            Self::UnreadOutput => {
                let code = Some("unread_output");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::TicketMemoryFull => {
                let code = Some("ticket_memory_full");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::EngineStopped => {
                let code = Some("engine_stopped");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::EngineHangs { .. } => {
                let code = Some("engine_hangs");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::OutOfMemory => {
                let code = Some("out_of_memory");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::StepFailed => {
                let code = Some("step_failed");
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, code)
            }
            Self::TicketFileChanged(_) => {
                let code = Some("ticket_file_changed");
                (StatusCode::INTERNAL_SERVER_ERROR, SERVER, code)
            }
            Self::DiskFull => {
                let status = StatusCode::INSUFFICIENT_STORAGE;
                (status, SERVER, Some("disk_full"))
            }
            Self::FolderReadOnly => {
                let code = Some("folder_read_only");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::TooManyConnections => {
                let code = Some("too_many_connections");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::BodiesFull => {
                let code = Some("too_many_bodies");
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, code)
            }
            Self::BodiesShareFull => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                (status, "rate_limit_error", Some("too_many_bodies"))
            }
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("draining")),
            Self::Starting => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("starting")),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
        }
    }

    /// Seconds after which a retry may succeed.
    pub(super) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::UploadQueueFull { retry_after } | Self::TenantBusy { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::QueueFull { retry_after }
            | Self::ShareFull { retry_after }
            | Self::TicketLineFull { retry_after, .. } => Some(*retry_after),
            Self::TicketMemoryFull
            | Self::TooManyConnections
            | Self::BodiesFull
            | Self::BodiesShareFull
            | Self::Draining
            | Self::Starting => Some(1),
            _ => None,
        }
    }

    /// Name of the field that is at fault.
    pub(super) fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param),
            Self::UnknownField(param) => Some(param),
            Self::ContextLength { param, .. } | Self::PromptBytes { param, .. } => Some(param),
            Self::ModelNotFound(_) => Some("model"),
            Self::TicketNotFound(_)
            | Self::TicketExists(_)
            | Self::NameTaken(_)
            | Self::PublicTicket(_) => Some("name"),
            Self::InvalidTicket(_) => Some("file"),
            _ => None,
        }
    }
}
