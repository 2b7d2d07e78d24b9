//! TLS: handshakes, plain HTTP on a TLS port, changed certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring, version};
use tombola::server::{Drained, Tls};

use crate::support::h2::Client;
use crate::support::live::{LONG, Live, options};

const GET: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

/// A folder with copies of a certificate and its key, which a test may replace.
fn installed(name: &str) -> (TempDir, Arc<Tls>) {
    let folder = TempDir::new().unwrap();
    install(&folder, name);
    let tls = Tls::load(&folder.path().join("crt"), &folder.path().join("key")).unwrap();
    (folder, tls)
}

fn install(folder: &TempDir, name: &str) {
    for kind in ["crt", "key"] {
        let shipped = shipped(&format!("{name}.{kind}"));
        fs::copy(shipped, folder.path().join(kind)).unwrap();
    }
}

/// Connects as a client that trusts the certificate of this name only.
async fn connect(
    live: &Live,
    trusted: &str,
    tls_12: bool,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_with(live, trusted, tls_12, Vec::new()).await
}

/// The same, by a client that speaks these protocols.
async fn connect_with(
    live: &Live,
    trusted: &str,
    tls_12: bool,
    protocols: Vec<Vec<u8>>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let certificate = CertificateDer::from_pem_file(shipped(&format!("{trusted}.crt"))).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let versions = if tls_12 {
        &version::TLS12
    } else {
        &version::TLS13
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[versions])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols;
    let socket = TcpStream::connect(live.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

#[tokio::test]
async fn requests_are_answered_over_tls() {
    let (_folder, tls) = installed("first");
    let live = Live::with(options(LONG), 64, Some(tls)).await;
    for tls_12 in [false, true] {
        let mut connection = connect(&live, "first", tls_12).await.unwrap();
        connection.write_all(GET.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(
        connect(&live, "second", false).await.is_err(),
        "trusted a stranger"
    );
    live.stop.send(()).unwrap();
    assert_eq!(live.serving.await.unwrap(), Drained::Complete);
}

#[tokio::test]
async fn http2_is_agreed_on_in_the_handshake() {
    let (_folder, tls) = installed("first");
    let live = Live::with(options(LONG), 64, Some(tls)).await;
    let protocols = [b"h2".to_vec(), b"http/1.1".to_vec()];
    let connection = connect_with(&live, "first", false, protocols.to_vec()).await;
    let connection = connection.unwrap();
    assert_eq!(connection.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = Client::begin(connection, 1 << 20).await;
    let models = client.request("GET", "/v1/models", "").await;
    assert_eq!(client.response(models).await.0, 200);
    let old = connect_with(&live, "first", false, protocols[1..].to_vec()).await;
    assert_eq!(
        old.unwrap().get_ref().1.alpn_protocol(),
        Some(&b"http/1.1"[..])
    );
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_so() {
    let (_folder, tls) = installed("first");
    let live = Live::with(options(LONG), 64, Some(tls)).await;
    let answer = live.answer(GET).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("use https"), "{answer}");
}

#[tokio::test]
async fn a_changed_certificate_serves_new_connections() {
    let (folder, tls) = installed("first");
    let live = Live::with(options(LONG), 64, Some(tls.clone())).await;
    let mut open = connect(&live, "first", false).await.unwrap();
    install(&folder, "second");
    assert!(tls.reload().unwrap());
    assert!(connect(&live, "second", false).await.is_ok());
    open.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_handshake_that_stalls_is_not_waited_for() {
    let (_folder, tls) = installed("first");
    let mut options = options(LONG);
    options.head_timeout = std::time::Duration::from_millis(100);
    let live = Live::with(options, 64, Some(tls)).await;
    assert_eq!(live.answer("\x16\x03\x01").await, "");
    let series = r#"tombola_http_client_timeouts_total{kind="handshake"}"#;
    assert_eq!(live.server.metric(series).await, 1.0);
}
