//! The echoing server on a real port, and raw connections to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tombola::server::{Drained, ListenOptions, Listener, Tls, router, serve};

use super::echo::Server;

/// Longer than any test.
pub const LONG: Duration = Duration::from_secs(60);

pub struct Live {
    pub server: Server,
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub serving: JoinHandle<Drained>,
}

/// Listener of all routes.
pub fn listener(socket: TcpListener) -> Listener {
    Listener {
        socket,
        routes: router,
        max_connections: 64,
        tls: None,
    }
}

/// Options with a body timeout that a test can wait for.
pub fn options(drain: Duration) -> ListenOptions {
    ListenOptions {
        body_timeout: Duration::from_secs(1),
        drain,
        ..ListenOptions::default()
    }
}

impl Live {
    pub async fn start(drain: Duration) -> Self {
        Self::with(options(drain), 64, None).await
    }

    /// A server with these options, limit of connections, and TLS.
    pub async fn with(options: ListenOptions, connections: usize, tls: Option<Arc<Tls>>) -> Self {
        let server = Server::new();
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap() };
        let listener = Listener {
            max_connections: connections,
            tls,
            ..listener(socket)
        };
        let serving = serve(vec![listener], server.state.clone(), options, stopped);
        let serving = tokio::spawn(serving);
        Self {
            server,
            address,
            stop,
            serving,
        }
    }

    /// A new connection that has sent these bytes.
    pub async fn send(&self, bytes: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(bytes.as_bytes()).await.unwrap();
        connection
    }

    /// The whole answer to these bytes, up to the end of the connection.
    pub async fn answer(&self, bytes: &str) -> String {
        read_to_end(self.send(bytes).await).await
    }

    /// A new connection that has sent a completion request.
    pub async fn post(&self, body: &Value) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        connection
    }

    pub async fn wait_for_requests(&self, requests: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.server.seen.requests.lock().unwrap().len() < requests {
            assert!(Instant::now() < deadline, "the engine received no request");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Reads until the text has arrived; the connection must not end before.
pub async fn read_until(connection: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(end) {
        let n = connection.read_buf(&mut read).await.unwrap();
        assert_ne!(n, 0, "the connection ended before {end:?}");
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Reads until the server ends the connection.
pub async fn read_to_end(mut connection: TcpStream) -> String {
    let mut read = Vec::new();
    let reading = connection.read_to_end(&mut read);
    let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
    // A reset ends it too.
    let _ = ended.expect("the server does not end the connection");
    String::from_utf8_lossy(&read).into_owned()
}
