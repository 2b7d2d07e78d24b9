//! Gate in front of the routes, closed until the base is loaded.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower::ServiceExt as _;

use crate::server::ops;
use crate::server::state::AppState;

/// Gate in front of the routes: answers 503 until it opens, so that the server can listen while
/// the base still loads.
#[derive(Clone, Default)]
pub struct StartupGate(Arc<OnceLock<Arc<AppState>>>);

impl StartupGate {
    /// Opens the gate to the routes of `state`. Later calls have no effect.
    pub fn open(&self, state: Arc<AppState>) {
        self.0.get_or_init(|| state);
    }

    pub(super) fn state(&self) -> Option<&Arc<AppState>> {
        self.0.get()
    }
}

impl From<Arc<AppState>> for StartupGate {
    fn from(state: Arc<AppState>) -> Self {
        let gate = Self::default();
        gate.open(state);
        gate
    }
}

/// The routes of one listener, behind the gate.
pub struct Routes {
    gate: StartupGate,
    build: fn(Arc<AppState>) -> Router,
    router: OnceLock<Router>,
}

impl Routes {
    /// The routes that `build` makes of the state behind the gate.
    pub fn new(gate: StartupGate, build: fn(Arc<AppState>) -> Router) -> Self {
        let router = OnceLock::new();
        Self {
            gate,
            build,
            router,
        }
    }

    /// Answers a request: with the routes if the gate is open, else with 503.
    pub async fn respond(&self, request: Request) -> Response {
        let Some(state) = self.gate.state() else {
            return ops::starting(&request);
        };
        let build = || (self.build)(Arc::clone(state));
        match self
            .router
            .get_or_init(build)
            .clone()
            .oneshot(request)
            .await
        {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
