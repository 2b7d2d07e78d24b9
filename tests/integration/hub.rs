//! A base from a hub: one on loopback, since tests reach no other.

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

use crate::common::{golden, load, load_tiny, scratch};

const COMMIT: &str = "0123abcd";

/// The two routes that the client uses, over a folder.
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
        let names = fs::read_dir(&folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // Weights in another layout lie beside many a model; they are not there to fetch here.
        let names = names.chain(["consolidated.safetensors".to_owned()]);
        let siblings: Vec<_> = names.map(|name| json!({"rfilename": name})).collect();
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

/// A range of a file; the client first asks for one byte, to learn size and digest.
async fn file(
    State(files): State<Files>,
    Route(name): Route<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, StatusCode> {
    let bytes = fs::read(files.folder.join(&name)).map_err(|_| StatusCode::NOT_FOUND)?;
    let (size, last) = (bytes.len(), bytes.len() - 1);
    let range = headers.get(header::RANGE).and_then(|r| r.to_str().ok());
    let range = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
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

/// Runs [`a_hub_id_is_fetched_once`] in a process of its own, since the client is told where the hub
/// is by environment variables.
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
    let hub = Hub::serve(golden("tiny").join("qwen2"));
    let url = hub.url.clone();
    resolve_elsewhere(&url, home.path());
    let downloads = hub.downloads.load(Ordering::SeqCst);
    assert!(downloads >= 2, "{downloads}");
    resolve_elsewhere(&url, home.path());
    assert_eq!(hub.downloads.load(Ordering::SeqCst), downloads);
    // With the hub gone, what is there is taken.
    drop(hub);
    resolve_elsewhere(&url, home.path());
}
