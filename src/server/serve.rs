//! The listening server: startup gate, graceful shutdown, drain.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower::ServiceExt as _;

use super::ops;
use super::routes::router;
use super::state::AppState;

/// Time for cut-off responses to send their last event.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Outcome of the drain at shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every response was sent.
    Complete,
    /// The drain timed out; the remaining responses were cut off.
    TimedOut,
}

/// Gate in front of the routes: answers 503 until it opens, so that the server can listen while
/// the base still loads.
#[derive(Clone, Default)]
pub struct StartupGate(Arc<OnceLock<(Arc<AppState>, Router)>>);

impl StartupGate {
    /// Opens the gate to the routes of `state`. Later calls have no effect.
    pub fn open(&self, state: Arc<AppState>) {
        let routes = router(Arc::clone(&state));
        self.0.get_or_init(|| (state, routes));
    }

    fn state(&self) -> Option<&AppState> {
        self.0.get().map(|(state, _)| &**state)
    }

    /// Answers every request: with the routes if the gate is open, else with 503.
    fn into_router(self) -> Router {
        Router::new().fallback(async move |request: Request| match self.0.get() {
            Some((_, routes)) => match routes.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None => ops::starting(&request),
        })
    }
}

impl From<Arc<AppState>> for StartupGate {
    fn from(state: Arc<AppState>) -> Self {
        let gate = Self::default();
        gate.open(state);
        gate
    }
}

/// Serves until `shutdown` resolves, then accepts no more connections and waits for running
/// responses for at most `drain`. Until `gate` opens, requests are answered with 503.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    gate: impl Into<StartupGate>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> io::Result<Drained> {
    let gate = gate.into();
    // Each token is a small packet that must not wait for the next one.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
        }
    });
    let (stopping, stopped) = oneshot::channel();
    let signal = {
        let gate = gate.clone();
        async move {
            shutdown.await;
            if let Some(state) = gate.state() {
                state.draining.store(true, Ordering::Release);
            }
            // The receiver is gone if serving has already failed.
            let _ = stopping.send(());
        }
    };
    let serving = axum::serve(listener, gate.clone().into_router()).with_graceful_shutdown(signal);
    let mut serving = pin!(serving.into_future());
    let deadline = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = &mut serving => return served.map(|()| Drained::Complete),
        () = deadline => {}
    }
    // Stopping the engine ends the remaining streams with an error event, which needs a moment.
    if let Some(state) = gate.state() {
        state.engine.shutdown();
    }
    match tokio::time::timeout(LAST_EVENT_TIMEOUT, serving).await {
        Ok(Err(error)) => Err(error),
        _ => Ok(Drained::TimedOut),
    }
}
