//! A base from a hub. The hub is a server on loopback; the test contacts no other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path as Route, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tombola::model::{Dtype, Source};

use crate::support::bases::{load, load_tiny, tiny_folder};
use crate::support::environment::scratch;

const COMMIT: &str = "0123abcd";

/// The two routes that the hub client uses, over a folder.
struct Hub {
    url: String,
    downloads: Arc<AtomicUsize>,
    /// Serving ends when this is dropped.
    _runtime: Runtime,
}

#[derive(Clone)]
struct Files {
    folder: PathBuf,
    downloads: Arc<AtomicUsize>,
}

impl Hub {
    fn serve(folder: PathBuf) -> Self {
        let runtime = Runtime::new().unwrap();
        let entries = fs::read_dir(&folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // Many models also have weights in another layout. Here a fetch of those fails.
        let listed = names.chain(["consolidated.safetensors".to_owned()]);
        let siblings: Vec<_> = listed.map(|name| json!({"rfilename": name})).collect();
        let info = json!({"siblings": siblings, "sha": COMMIT}).to_string();
        let downloads = Arc::new(AtomicUsize::new(0));
        let app = Router::new()
            .route(
                "/api/models/tiny/qwen2/revision/main",
                get(|| async { info }),
            )
            .route("/tiny/qwen2/resolve/0123abcd/{file}", get(file))
            .with_state(Files {
                folder,
                downloads: Arc::clone(&downloads),
            });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            url,
            downloads,
            _runtime: runtime,
        }
    }
}

/// A range of a file. The client first requests one byte, for the size and the digest.
async fn file(
    State(files): State<Files>,
    Route(name): Route<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, StatusCode> {
    let bytes = fs::read(files.folder.join(&name)).map_err(|_| StatusCode::NOT_FOUND)?;
    let (size, last) = (bytes.len(), bytes.len() - 1);
    let range = headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let (from, to): (usize, usize) = match range {
        Some((from, to)) => (from.parse().unwrap(), to.parse().unwrap_or(last).min(last)),
        None => (0, last),
    };
    if to > 0 {
        files.downloads.fetch_add(1, Ordering::SeqCst);
    }
    let headers = [
        ("x-repo-commit", COMMIT.to_owned()),
        ("etag", format!("\"{name}\"")),
        ("content-range", format!("bytes {from}-{to}/{size}")),
        ("accept-ranges", "bytes".to_owned()),
    ];
    let body = bytes[from..=to].to_vec();
    Ok((StatusCode::PARTIAL_CONTENT, headers, body))
}

/// Runs [`a_hub_id_is_fetched_once`] in a child process, since environment variables tell the
/// client the hub's address.
fn resolve_elsewhere(url: &str, home: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::a_hub_id_is_fetched_once", "--nocapture"])
        .env("TOMBOLA_TEST_HUB", "1")
        .env("HF_ENDPOINT", url)
        .env("HF_HOME", home)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn a_hub_id_is_fetched_once() {
    let whole = || load_tiny("qwen2", Dtype::F32).manifest.fingerprint;
    if std::env::var_os("TOMBOLA_TEST_HUB").is_some() {
        let resolve = |id: &str| Source::parse(id).unwrap().resolve(&scratch(), &mut |_| ());
        let base = load(&resolve("tiny/qwen2").unwrap(), Dtype::F32);
        assert_eq!(base.manifest.fingerprint, whole());
        let error = resolve("tiny/none").unwrap_err().to_string();
        assert!(error.contains("tiny/none"), "{error}");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::serve(tiny_folder("qwen2"));
    let url = hub.url.clone();
    resolve_elsewhere(&url, home.path());
    let downloads = hub.downloads.load(Ordering::SeqCst);
    assert!(downloads >= 2, "{downloads}");
    resolve_elsewhere(&url, home.path());
    assert_eq!(hub.downloads.load(Ordering::SeqCst), downloads);
    // Without the hub, the cached files serve.
    drop(hub);
    resolve_elsewhere(&url, home.path());
}
