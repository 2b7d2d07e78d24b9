//! Errors of the layers below as errors sent to clients.

use axum::extract::rejection::PathRejection;

use super::ApiError;
use crate::engine::{ConstraintError, SequenceError, SubmitError};
use crate::registry::{FolderTrouble, RegistryError};
use crate::server::fields::brief;

/// A path parameter that is not UTF-8.
impl From<PathRejection> for ApiError {
    fn from(error: PathRejection) -> Self {
        Self::UnknownUrl(error.body_text())
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { retry_after } => Self::QueueFull { retry_after },
            SubmitError::ShareFull { retry_after } => Self::ShareFull { retry_after },
            SubmitError::Stopped => Self::EngineStopped,
        }
    }
}

impl From<SequenceError> for ApiError {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::NotFinite => Self::BrokenTicket,
            SequenceError::Unread => Self::UnreadOutput,
            SequenceError::OutOfMemory => Self::OutOfMemory,
            SequenceError::StepFailed => Self::StepFailed,
            SequenceError::Constraint(ConstraintError::Failed) => {
                Self::Internal("a constraint failed".to_owned())
            }
            SequenceError::Constraint(error) => Self::Constraint(error.to_string()),
        }
    }
}

/// Error of a ticket route. The completion routes report an unknown alias as an unknown model
/// instead.
impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Unknown(alias) => Self::TicketNotFound(brief(alias)),
            RegistryError::Exists(alias) => Self::TicketExists(alias),
            RegistryError::DiffersInCase { .. } | RegistryError::Obstructed(_) => {
                Self::NameTaken(error.to_string())
            }
            RegistryError::Precondition { .. } => Self::PreconditionFailed(error.to_string()),
            RegistryError::Public(_) => Self::PublicTicket(error.to_string()),
            RegistryError::Name(_)
            | RegistryError::Reserved(_)
            | RegistryError::ReadsAsDigest(_) => Self::Invalid {
                message: error.to_string(),
                param: "name".to_owned(),
            },
            RegistryError::Selection(_)
            | RegistryError::Composition { .. }
            | RegistryError::CompositionTooLarge { .. } => Self::Invalid {
                message: error.to_string(),
                param: "model".to_owned(),
            },
            RegistryError::PinsTooLarge { .. } => Self::PinsTooLarge(error.to_string()),
            RegistryError::Invalid(_) | RegistryError::TooLargeForMemory { .. } => {
                Self::InvalidTicket(error.to_string())
            }
            RegistryError::MemoryFull { .. } => Self::TicketMemoryFull,
            RegistryError::LineFull { retry_after, .. }
            | RegistryError::LineShare { retry_after, .. } => Self::TicketLineFull {
                reason: error.to_string(),
                retry_after,
            },
            RegistryError::Changed { ref alias, .. } => {
                tracing::error!(%error, "refused a request");
                Self::TicketFileChanged(alias.clone())
            }
            RegistryError::NotInside => {
                Self::invalid("lora_path", "is not a ticket file below the ticket folder")
            }
            RegistryError::Io {
                error: ref cause, ..
            } => match FolderTrouble::of(cause) {
                Some(FolderTrouble::DiskFull) => Self::DiskFull,
                Some(FolderTrouble::ReadOnly) => Self::FolderReadOnly,
                None => Self::Internal(error.to_string()),
            },
            RegistryError::LinkedFolder(ref link) => {
                tracing::error!(link = %link.display(), "refused an upload into a linked folder");
                Self::FolderReadOnly
            }
            RegistryError::Refused { .. }
            | RegistryError::InUse { .. }
            | RegistryError::Layout { .. }
            | RegistryError::LoadFailed(_) => Self::Internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn a_full_line_for_ticket_memory_is_429_with_the_pause_before_a_retry() {
        let (waiting, retry_after) = (4, 7);
        for error in [
            RegistryError::LineFull {
                waiting,
                retry_after,
            },
            RegistryError::LineShare {
                waiting,
                retry_after,
            },
        ] {
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        }
    }
}
