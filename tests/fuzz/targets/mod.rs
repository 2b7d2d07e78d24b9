//! The targets.

mod base;
mod request;
mod template;
mod ticket;

/// Result of a target as its outcome.
fn outcome<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => crate::harness::outcome(&error.to_string()),
    }
}
