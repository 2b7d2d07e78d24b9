//! A tiny base with a tokenizer, its ticket folder, and tickets for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tempfile::TempDir;
use tombola::model::{CacheDir, Dtype, Files};
use tombola::ticket::{BaseManifest, DeltaDtype, Digest, TensorDelta};

use crate::support::bases::{LLAMA, copy_tiny, load};
use crate::support::environment::utf8;
use crate::support::server::{Server, get};
use crate::support::tickets::{RandomDeltas, encode_ticket};
use crate::support::tokenizer::{tokenizer, write_tokenizer};

/// A tiny base that the binary can serve, with a ticket folder and a cache folder beside it.
pub struct Place {
    base: TempDir,
    folders: TempDir,
    manifest: Arc<BaseManifest>,
}

impl Place {
    pub fn new() -> Self {
        let base = copy_tiny(LLAMA);
        write_tokenizer(base.path(), &tokenizer());
        let manifest = load(&Files::Folder(base.path().to_owned()), Dtype::F32).manifest;
        let folders = tempfile::tempdir().unwrap();
        fs::create_dir(folders.path().join("tickets")).unwrap();
        Self {
            base,
            folders,
            manifest,
        }
    }

    /// The ticket folder.
    pub fn tickets(&self) -> PathBuf {
        self.folders.path().join("tickets")
    }

    /// The file of a public ticket.
    pub fn ticket(&self, name: &str) -> PathBuf {
        self.tickets().join(format!("{name}.safetensors"))
    }

    pub fn cache(&self) -> CacheDir {
        CacheDir::at(self.folders.path().join("cache"))
    }

    /// Arguments of the binary for this place.
    pub fn args(&self) -> Vec<String> {
        let base = utf8(self.base.path()).to_owned();
        let tickets = utf8(&self.tickets()).to_owned();
        let given = ["--model", &base, "--tickets", &tickets];
        let quick = [
            "--ticket-mode",
            "apply",
            "--kv-cache-mib",
            "8",
            "--threads",
            "1",
        ];
        let named = ["--served-model-name", "tiny"];
        let all = given.into_iter().chain(quick).chain(named);
        all.map(str::to_owned).collect()
    }

    /// Starts the binary.
    pub fn start(&self, more: &[&str]) -> Server {
        let args = self.args();
        let args: Vec<_> = args
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        Server::start_in(&self.cache(), &args)
    }

    /// Bytes of a ticket for the base; each seed gives another.
    pub fn encode(&self, density: f64, seed: u64) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(seed);
        let deltas = RandomDeltas {
            density,
            largest: 0.01,
            dtype: DeltaDtype::F32,
        };
        let tensors: BTreeMap<String, TensorDelta> =
            deltas.tensors(&self.manifest, &mut rng, |_, _| true);
        encode_ticket(&self.manifest, &tensors)
    }
}

/// Digest of a file, as the server prints it; `None` if there is none.
pub fn digest_of(file: &Path) -> Option<String> {
    let bytes = fs::read(file).ok()?;
    Some(Digest::of(&bytes).to_string())
}

/// The digests that the server lists, by alias.
pub fn served(server: &Server) -> BTreeMap<String, String> {
    let list: Value = serde_json::from_str(&get(server, "/v1/tickets?limit=1000")).unwrap();
    let tickets = list["data"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |ticket: &Value| (text(&ticket["name"]), text(&ticket["digest"]));
    tickets.iter().map(pair).collect()
}

/// The files that the server refuses: their paths below the folder, with the reasons.
pub fn refused(server: &Server) -> BTreeMap<String, String> {
    let list = get(server, "/v1/tickets?status=refused");
    let list: Value = serde_json::from_str(&list).unwrap();
    let files = list["data"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = |file: &Value| (text(&file["file"]), text(&file["reason"]));
    files.iter().map(pair).collect()
}

/// Waits until `done` holds; panics with the server's log if it never does.
pub fn wait_for(server: &Server, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: {}", server.log());
        thread::sleep(Duration::from_millis(50));
    }
}
