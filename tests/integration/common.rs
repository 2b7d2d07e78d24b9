//! What the tests share: the real default base through the product's own fetch path, and a decoder
//! driven by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};

use candle_core::{D, Device, IndexOp, Tensor};
use half::bf16;
use rand::Rng;
use rand::rngs::StdRng;
use tempfile::NamedTempFile;
use tombola::kernels::step::graphs::Graphs;
use tombola::model::{
    BLOCK, Base, Batch, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, KvCache, LoadOptions,
    TicketOverlay, default_gguf,
};
use tombola::ticket::{BaseManifest, Deltas, Metadata, TensorDelta, Ticket};

/// The cache folder: the user's own, so that the base is fetched once a machine.
pub fn cache() -> CacheDir {
    let set = std::env::var_os("TOMBOLA_CACHE_DIR").map(PathBuf::from);
    CacheDir::at(set.unwrap_or_else(CacheDir::default_path))
}

/// A cache folder of the tests' own, for the fingerprints of what they make.
pub fn scratch() -> CacheDir {
    let folder = folder("CARGO_TARGET_TMPDIR", env!("CARGO_TARGET_TMPDIR"));
    CacheDir::at(folder.join("cache"))
}

/// A folder of cargo's: where it says now, if tests run elsewhere than they were built.
fn folder(variable: &str, at_build: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(at_build), PathBuf::from)
}

/// The default base's GGUF file, fetched on first use.
pub fn default_gguf_path() -> PathBuf {
    static PATH: LazyLock<PathBuf> =
        LazyLock::new(|| default_gguf(&cache(), &mut |_| ()).expect("the default base"));
    PATH.clone()
}

/// The random models of `tests/golden/tiny`: one of each kind of decoder.
pub const TINY: [&str; 5] = [
    "llama-untied",
    "llama3-rope",
    "mistral-window",
    "qwen2",
    "qwen3",
];

/// A file of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    let root = folder("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden").join(name)
}

/// Parses a JSON file of `tests/golden`.
pub fn golden_json(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(golden(name)).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

/// Token ids in a JSON array.
pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

/// Where bases are resident: on the CPU, unless `TOMBOLA_TEST_DEVICE` says otherwise (`deploy/gpu-check` does).
pub fn device() -> DeviceSpec {
    let named = std::env::var("TOMBOLA_TEST_DEVICE");
    named.map_or(DeviceSpec::Cpu, |name| name.parse().expect("a device"))
}

/// All positions, nothing kept quantised.
pub fn dense(dtype: Dtype) -> LoadOptions {
    LoadOptions {
        dtype,
        device: device(),
        max_positions: None,
        keep_quantized: false,
    }
}

pub fn load(files: &Files, dtype: Dtype) -> Base {
    load_with(files, &dense(dtype))
}

pub fn load_with(files: &Files, options: &LoadOptions) -> Base {
    let checkpoint = Checkpoint::open(files).expect("a checkpoint");
    let base = Base::load("base", &checkpoint, options, &scratch(), &mut |_| ());
    base.expect("a base that loads")
}

pub fn load_default(dtype: Dtype) -> Base {
    load(&Files::Gguf(default_gguf_path()), dtype)
}

/// The default base, its weights as its file has them.
pub fn load_default_quantized() -> Base {
    let options = LoadOptions {
        keep_quantized: true,
        device: DeviceSpec::Cpu,
        ..dense(Dtype::F32)
    };
    load_with(&Files::Gguf(default_gguf_path()), &options)
}

/// One of the random models of `tests/golden/tiny`.
pub fn load_tiny(name: &str, dtype: Dtype) -> Base {
    load(&Files::Folder(golden("tiny").join(name)), dtype)
}

/// A delta at random positions of a projection, always at its first and last weight.
pub fn random_delta(
    shape: [usize; 2],
    density: f64,
    largest: f32,
    half: bool,
    rng: &mut StdRng,
) -> TensorDelta {
    let weights = shape[0] * shape[1];
    let edge = |i: usize| i == 0 || i == weights - 1;
    let kept = (0..weights).filter(|&i| rng.random_bool(density) || edge(i));
    let kept: Vec<usize> = kept.collect();
    let deltas = kept.iter().map(|_| rng.random_range(-largest..largest));
    let deltas = if half {
        Deltas::Bf16(deltas.map(bf16::from_f32).collect())
    } else {
        Deltas::F32(deltas.collect())
    };
    TensorDelta::from_flat(shape, &kept, deltas).expect("a delta")
}

/// The file of a ticket for `base`.
pub fn encode_ticket(base: &BaseManifest, tensors: &BTreeMap<String, TensorDelta>) -> Vec<u8> {
    let nonzeros = tensors.values().map(TensorDelta::nonzeros).sum();
    let metadata = Metadata::new("random", base, nonzeros);
    Ticket::encode(&metadata, tensors).expect("a ticket")
}

/// Sequences that a test runs through a decoder as it pleases.
pub struct Player<'a> {
    base: &'a Base,
    cache: KvCache,
    /// As the engine does it.
    graphs: Graphs,
    tables: Vec<Vec<u32>>,
    computed: Vec<usize>,
    overlaid: Option<Arc<TicketOverlay>>,
}

impl<'a> Player<'a> {
    /// Room for `sequences` sequences of `positions` positions, in interleaved blocks.
    pub fn new(base: &'a Base, sequences: usize, positions: usize) -> Self {
        let blocks = positions.div_ceil(BLOCK);
        let table = |s: usize| (0..blocks).map(|b| (b * sequences + s) as u32).collect();
        Self {
            base,
            cache: base.kv_cache(blocks * sequences).expect("a cache"),
            graphs: Graphs::new(base.device()),
            tables: (0..sequences).map(table).collect(),
            computed: vec![0; sequences],
            overlaid: None,
        }
    }

    /// Lays a ticket over every row.
    pub fn under(self, overlaid: Option<&Arc<TicketOverlay>>) -> Self {
        Self {
            overlaid: overlaid.cloned(),
            ..self
        }
    }

    /// Appends tokens to sequences, as one step; returns log-probabilities `[vocab]` after the
    /// last token of each.
    pub fn step(&mut self, chunks: &[(usize, &[u32])]) -> Vec<Vec<f32>> {
        logprobs(&self.logits(chunks))
    }

    /// The same as raw logits.
    pub fn logits(&mut self, chunks: &[(usize, &[u32])]) -> Tensor {
        let mut batch = Batch::default();
        for &(sequence, tokens) in chunks {
            let start = self.computed[sequence];
            batch.push(tokens, start, &self.tables[sequence], true);
            if let Some(ticket) = &self.overlaid {
                batch.overlay(ticket);
            }
            self.computed[sequence] += tokens.len();
        }
        let decoder = &self.base.decoder;
        let logits = decoder.forward_captured(&batch, &self.cache, &mut self.graphs);
        logits.expect("a step").expect("rows were asked for")
    }

    /// Continues sequence 0 after `prompt`, greedily.
    pub fn greedy(&mut self, prompt: &[u32], tokens: usize) -> Vec<u32> {
        let mut next = prompt.to_vec();
        let mut out = Vec::new();
        while out.len() < tokens {
            let row = self.step(&[(0, &next)]).remove(0);
            let best = (0..row.len())
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .unwrap();
            next = vec![best as u32];
            out.push(best as u32);
        }
        out
    }
}

/// Log-probabilities of each row of logits.
pub fn logprobs(logits: &Tensor) -> Vec<Vec<f32>> {
    let logits = logits.to_device(&Device::Cpu).unwrap();
    let logits = logits.to_dtype(candle_core::DType::F64).unwrap();
    let rows = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
    let rows = rows.to_dtype(candle_core::DType::F32).unwrap();
    (0..rows.dim(0).unwrap())
        .map(|r| rows.i(r).unwrap().to_vec1().unwrap())
        .collect()
}

/// The real binary, serving on a free port.
pub struct Server {
    child: Child,
    url: String,
    /// What it printed before it was ready.
    pub banner: String,
    /// Holds what it writes to standard error.
    log: NamedTempFile,
}

impl Server {
    /// Starts `tombola --port 0` with more arguments, and waits until it serves.
    pub fn start(args: &[&str]) -> Self {
        let log = NamedTempFile::new().expect("a temporary file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tombola"))
            .args(["--port", "0", "--cache-dir"])
            .arg(cache().path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.reopen().expect("the log"))
            .spawn()
            .expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut banner = String::new();
        while !banner.contains("  curl ") {
            let read = stdout.read_line(&mut banner).expect("standard output");
            let log = || std::fs::read_to_string(log.path()).unwrap_or_default();
            assert!(read > 0, "the server ended early: {}", log());
        }
        let url = banner
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let url = url.expect("the banner names the URL").to_owned();
        Self {
            child,
            url,
            banner,
            log,
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        // The shell's own: not every machine has the program.
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; returns what was written to standard error too.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("the server ends");
        let log = std::fs::read_to_string(self.log.path()).expect("the log");
        (status, log)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.wait().0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where a test has waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
