//! The tables of the architecture: layers, foreign crates, and the homes of `unsafe` and of
//! decisions.

/// The layers from top to bottom, each with the other layers that it may use. Arrows point
/// down only: a layer uses only layers further down in this table.
pub const LAYERS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "server",
            "chat",
            "device_bench",
            "loadgen",
            "eval",
            "engine",
            "registry",
            "train",
            "model",
            "kernels",
            "data",
            "chat",
            "text",
            "ticket",
            "access",
            "metrics",
        ],
    ),
    (
        "server",
        &[
            "chat", "grammar", "engine", "registry", "text", "ticket", "access", "metrics",
        ],
    ),
    ("device_bench", &["model", "kernels", "ticket"]),
    ("loadgen", &["text"]),
    ("grammar", &["engine", "text"]),
    ("eval", &["engine", "registry", "data", "text"]),
    (
        "engine",
        &[
            "registry", "model", "kernels", "ticket", "access", "metrics",
        ],
    ),
    ("registry", &["model", "ticket", "access"]),
    ("train", &["model", "kernels", "data", "ticket"]),
    ("model", &["kernels", "ticket"]),
    ("kernels", &["ticket"]),
    ("data", &["text", "ticket"]),
    ("chat", &["text"]),
    ("text", &[]),
    ("ticket", &[]),
    ("access", &[]),
    ("metrics", &[]),
];

const TENSORS: &[&str] = &["candle_core", "candle_nn", "candle_transformers"];
const HTTP: &[&str] = &["axum", "hyper", "tower", "tower_http"];

const GRAMMARS: &[&str] = &["llguidance", "toktrie"];

/// Crates that files must not use, by the start of their path.
pub const STRANGERS: &[(&str, &[&[&str]])] = &[
    (
        "src/ticket/",
        &[TENSORS, HTTP, &["tokio", "hf_hub", "tokenizers"]],
    ),
    (
        "src/engine/scheduler",
        &[TENSORS, HTTP, &["tokio", "tokenizers"]],
    ),
    (
        "src/engine/policy/",
        &[TENSORS, HTTP, &["tokio", "tokenizers"]],
    ),
    (
        "src/engine/costs/mod.rs",
        &[TENSORS, HTTP, &["tokio", "tokenizers"]],
    ),
    (
        "src/engine/",
        &[HTTP, &["tokenizers", "minijinja"], GRAMMARS],
    ),
    ("src/grammar/", &[TENSORS, HTTP, &["tokio", "tokenizers"]]),
    ("src/server/", &[TENSORS, GRAMMARS]),
    ("src/device_bench/", &[HTTP, &["tokio", "tokenizers"]]),
    ("src/loadgen/", &[TENSORS, HTTP, &["tokio", "tokenizers"]]),
    ("src/eval/", &[TENSORS, HTTP]),
    ("src/registry/", &[TENSORS, HTTP]),
    ("src/access/", &[TENSORS, HTTP, &["tokio", "tokenizers"]]),
    ("src/train/", &[HTTP, &["tokio", "tokenizers"]]),
    ("src/model/", &[HTTP, &["tokio"]]),
    ("src/kernels/", &[HTTP, &["tokio"]]),
    (
        "src/data/",
        &[TENSORS, HTTP, &["tokio", "tokenizers", "minijinja"]],
    ),
    ("src/chat/", &[TENSORS, HTTP, &["tokio", "tokenizers"]]),
    ("src/text/", &[HTTP, &["tokio"]]),
];

/// Files that may contain `unsafe`: the kernels, those that map a file into memory (a checkpoint
/// and the state of a training run), and the allocator that the fuzzing counts with.
pub const UNSAFE_HOMES: &[&str] = &[
    "src/kernels/",
    "src/model/checkpoint.rs",
    "src/train/run_folder.rs",
    "tests/fuzz/counting.rs",
];

/// Files that may decide by dtype, device or quantisation. Others may name them and pass them on.
pub const DECISION_HOMES: &[&str] = &["src/kernels/", "src/model/device.rs"];
