//! The audit log: one line for each administrative action, with the tracing target `audit`.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::Response;

use super::caller::Caller;
use super::error::ErrorCode;
use crate::access::Tenant;

/// The line of one action. It is written when the action ends, also if the client disconnects
/// before.
pub struct Entry {
    action: &'static str,
    caller: Caller,
    peer: Option<SocketAddr>,
    outcome: Option<(StatusCode, Option<&'static str>)>,
}

impl Entry {
    /// Begins the line of `action`, which `caller` requests.
    pub fn begin(action: &'static str, caller: Caller, request: &Request) -> Self {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        Self {
            action,
            caller,
            peer: peer.map(|ConnectInfo(address)| *address),
            outcome: None,
        }
    }

    /// Ends the line with the outcome that `response` tells.
    pub fn end(mut self, response: &Response) {
        let code = response.extensions().get::<ErrorCode>();
        self.outcome = Some((response.status(), code.map(|code| code.0)));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let trail = &self.caller.trail;
        let (status, code) = self.outcome.unzip();
        tracing::info!(
            target: "audit",
            action = self.action,
            outcome = match status {
                None => "abandoned",
                Some(status) if status.is_success() => "done",
                Some(_) => "refused",
            },
            status = status.map(|status| status.as_u16()),
            code = code.flatten(),
            key = self.caller.key.as_deref(),
            tenant = self.caller.tenant.as_ref().map(Tenant::as_str),
            ticket = trail.noted_ticket(),
            digest = trail.noted_digest(),
            peer = self.peer.map(tracing::field::display),
        );
    }
}
