//! The audit log: one line for each administrative action, with the tracing target `audit`.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::http::StatusCode;
use axum::response::Response;

use super::error::ErrorReport;
use crate::access::Tenant;

/// What the audit line of a request tells, noted as it is learnt. Clones note for the same line,
/// which is written when the last of them is dropped: an action goes on if its client disconnects,
/// and so does its clone.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Line>);

/// An action and its caller.
#[derive(Debug)]
pub struct Action {
    pub name: &'static str,
    pub key: Option<Arc<str>>,
    pub tenant: Option<Tenant>,
    pub peer: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct Line {
    /// Without one, there is no line.
    action: OnceLock<Action>,
    ticket: OnceLock<String>,
    digest: OnceLock<String>,
    done: OnceLock<()>,
    answer: OnceLock<(StatusCode, Option<&'static str>)>,
}

impl Trail {
    /// Begins the line. Only the first action counts.
    pub fn begin(&self, action: Action) {
        self.0.action.get_or_init(|| action);
    }

    /// Notes the name of the ticket. Only the first name counts.
    pub fn ticket(&self, name: &str) {
        let name = || name.chars().take(256).collect();
        self.0.ticket.get_or_init(name);
    }

    /// Notes that the action took effect, on a ticket of this digest.
    pub fn done(&self, digest: impl ToString) {
        self.0.digest.get_or_init(|| digest.to_string());
        self.0.done.get_or_init(|| ());
    }

    /// Notes the response.
    pub fn answered(&self, response: &Response) {
        let report = response.extensions().get::<ErrorReport>();
        let answer = (response.status(), report.and_then(|report| report.code));
        self.0.answer.get_or_init(|| answer);
    }
}

impl Line {
    fn outcome(&self) -> &'static str {
        let status = self.answer.get().map(|(status, _)| status);
        match status {
            _ if self.done.get().is_some() => "done",
            Some(status) if status.is_success() => "done",
            Some(_) => "refused",
            None => "abandoned",
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(action) = self.action.get() else {
            return;
        };
        let (status, code) = self.answer.get().copied().unzip();
        tracing::info!(
            target: "audit",
            action = action.name,
            outcome = self.outcome(),
            status = status.map(|status| status.as_u16()),
            code = code.flatten(),
            key = action.key.as_deref(),
            tenant = action.tenant.as_ref().map(Tenant::as_str),
            ticket = self.ticket.get().map(String::as_str),
            digest = self.digest.get().map(String::as_str),
            peer = action.peer.map(tracing::field::display),
        );
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn the_outcome_is_what_happened_whether_the_client_heard_of_it_or_not() {
        let outcome = |done: bool, status: Option<StatusCode>| {
            let trail = Trail::default();
            if done {
                trail.clone().done("a digest");
            }
            if let Some(status) = status {
                trail.answered(&status.into_response());
            }
            trail.0.outcome()
        };
        assert_eq!(outcome(true, Some(StatusCode::CREATED)), "done");
        assert_eq!(outcome(false, Some(StatusCode::OK)), "done");
        assert_eq!(outcome(false, Some(StatusCode::CONFLICT)), "refused");
        assert_eq!(outcome(true, None), "done");
        assert_eq!(outcome(false, None), "abandoned");
    }
}
