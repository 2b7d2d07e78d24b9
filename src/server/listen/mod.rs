//! The listening server: TCP, the limits of connections and their clients, and the drain.
//!
//! A connection crosses `accept` (admits it, or makes room) → `connection` (its task) →
//! `write_timeout` → `preface` (the version of HTTP) → `client_io` (frames and checks what the
//! client sends), or `http2` → hyper → the routes behind the `gate`.

mod accept;
mod client_io;
mod connection;
mod connections;
mod descriptors;
mod endpoint;
mod framing;
mod gate;
mod half_close;
mod head;
mod http2;
mod preface;
mod refuse;
mod tls;
mod write_timeout;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::state::AppState;
use connections::Connections;
pub use descriptors::connection_limit;
use endpoint::Endpoint;
use gate::Routes;
pub use gate::StartupGate;
pub use tls::{Tls, TlsError};

/// Time for cut-off responses to send their last event.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A bound socket and the routes that it serves.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Makes the routes once the base is loaded, for example [`crate::server::router`].
    pub routes: fn(Arc<AppState>) -> Router,
    /// Most connections at once. A few more serve probes only.
    pub max_connections: usize,
    /// Certificate and key if the listener speaks TLS.
    pub tls: Option<Arc<Tls>>,
}

/// How long clients may take, and the drain.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Time from the first byte of a request to the end of its headers, and from a connection to
    /// the end of the headers of its first request.
    pub head_timeout: Duration,
    /// Time that a connection is kept open for the next request.
    pub keep_alive: Duration,
    /// Longest pause between two pieces of a request body, and the total of the pauses that do not
    /// count against `min_body_rate`.
    pub body_timeout: Duration,
    /// Bytes of a request body per second that a client must send on average.
    pub min_body_rate: u64,
    /// Time after which a client that does not read its response is disconnected.
    pub write_timeout: Duration,
    /// Time that running responses get to finish at shutdown.
    pub drain: Duration,
}

impl ListenOptions {
    /// Time that a client may pause before the next piece of a body of which it has sent `bytes`
    /// so far, and which has been waited for this long.
    fn body_pause(&self, bytes: u64, waited: Duration) -> Duration {
        let earned = Duration::from_secs_f64(bytes as f64 / self.min_body_rate.max(1) as f64);
        let left = (self.body_timeout + earned).saturating_sub(waited);
        left.min(self.body_timeout)
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            min_body_rate: 4096,
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

/// Outcome of the drain at shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every response was sent.
    Complete,
    /// The drain timed out; the remaining responses were cut off.
    TimedOut,
}

/// Progress of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Running responses finish; nothing else begins.
    Draining,
    /// Connections end at once.
    Cut,
}

/// Serves until `shutdown` resolves, then accepts no more connections, ends those without a whole
/// request, and waits for running responses for at most the drain of the options. Until `gate`
/// opens, requests are answered with 503.
pub async fn serve(
    listeners: Vec<Listener>,
    gate: impl Into<StartupGate>,
    options: ListenOptions,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let gate = gate.into();
    let options = Arc::new(options);
    let (stage, _) = watch::channel(Stage::Serving);
    let mut tables = Vec::with_capacity(listeners.len());
    for tls in certificates(&listeners) {
        tokio::spawn(tls.follow());
    }
    for listener in listeners {
        let table = Connections::new(listener.max_connections, gate.clone());
        let endpoint = Endpoint {
            routes: Routes::new(gate.clone(), listener.routes),
            options: Arc::clone(&options),
            stage: stage.subscribe(),
            tls: listener.tls,
        };
        let accepting = accept::run(listener.socket, Arc::clone(&table), endpoint);
        tokio::spawn(accepting);
        tables.push(table);
    }
    shutdown.await;
    if let Some(state) = gate.state() {
        state.draining.store(true, Ordering::Release);
    }
    stage.send_replace(Stage::Draining);
    if tokio::time::timeout(options.drain, all_ended(&tables))
        .await
        .is_ok()
    {
        return Drained::Complete;
    }
    // Stopping the engine ends the remaining streams with an error event, which needs a moment.
    if let Some(state) = gate.state() {
        state.engine.shutdown();
    }
    // Those that remain are cut.
    let _ = tokio::time::timeout(LAST_EVENT_TIMEOUT, all_ended(&tables)).await;
    stage.send_replace(Stage::Cut);
    Drained::TimedOut
}

/// The certificates of these listeners, each once: listeners may share one.
fn certificates(listeners: &[Listener]) -> Vec<Arc<Tls>> {
    let mut found: Vec<Arc<Tls>> = Vec::new();
    for tls in listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
    {
        if !found.iter().any(|other| Arc::ptr_eq(other, tls)) {
            found.push(Arc::clone(tls));
        }
    }
    found
}

/// Waits until no listener has a connection.
async fn all_ended(tables: &[Arc<Connections>]) {
    for table in tables {
        table.all_ended().await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn a_certificate_that_listeners_share_is_followed_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
        let load = || Tls::load(&folder.join("first.crt"), &folder.join("first.key")).unwrap();
        let (shared, own) = (load(), load());
        let mut listeners = Vec::new();
        for tls in [Some(&shared), None, Some(&own), Some(&shared)] {
            listeners.push(Listener {
                socket: TcpListener::bind(("127.0.0.1", 0)).await.unwrap(),
                routes: crate::server::router,
                max_connections: 1,
                tls: tls.cloned(),
            });
        }
        assert_eq!(certificates(&listeners).len(), 2);
    }
}
