//! The accept loop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::Stage;
use super::connections::Connections;
use super::endpoint::{Endpoint, reached};

/// Pause after a failure that will repeat at once, as when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two warnings about such failures.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts connections and serves each in its own task, until the drain begins.
pub async fn run(socket: TcpListener, connections: Arc<Connections>, endpoint: Endpoint) {
    let endpoint = Arc::new(endpoint);
    let mut stage = endpoint.stage.clone();
    let mut warned: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = reached(&mut stage, Stage::Draining) => return,
        };
        match accepted {
            Ok((client, peer)) => {
                // Without one, dropping the socket closes it.
                if let Some(admitted) = connections.admit() {
                    tokio::spawn(Arc::clone(&endpoint).serve(client, peer, admitted));
                }
            }
            Err(error) if of_client(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                if warned.is_none_or(|warned| warned.elapsed() > WARNING_INTERVAL) {
                    tracing::warn!(%error, "cannot accept connections");
                    warned = Some(Instant::now());
                }
                connections.evict();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the failure is of the one connection only.
fn of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
