//! Holds the architecture: which layer may know which, and what only some files may do. It reads the
//! paths in `src/**/*.rs` as text, without comments and strings. Unit tests (`#[cfg(test)]` items and
//! `tests.rs`) may reach further than the code they test, but not for `unsafe`.

mod decisions;
mod source;

use std::path::{Path, PathBuf};

use decisions::decisions;
use source::{PathInCode, lex, paths, without_tests};

/// The layers from top to bottom, each with the layers that it may use besides itself. Arrows point
/// down only: every name stands below the line that it is used in.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "server",
            "device_bench",
            "loadgen",
            "eval",
            "engine",
            "registry",
            "train",
            "model",
            "kernels",
            "data",
            "text",
            "ticket",
            "metrics",
        ],
    ),
    (
        "server",
        &["engine", "registry", "text", "ticket", "metrics"],
    ),
    ("device_bench", &["model", "kernels", "ticket"]),
    ("loadgen", &["text"]),
    ("eval", &["engine", "registry", "data", "text", "ticket"]),
    (
        "engine",
        &["registry", "model", "kernels", "ticket", "metrics"],
    ),
    ("registry", &["model", "ticket"]),
    ("train", &["model", "kernels", "data", "ticket"]),
    ("model", &["kernels", "ticket"]),
    ("kernels", &["ticket"]),
    ("data", &["text", "ticket"]),
    ("text", &[]),
    ("ticket", &[]),
    ("metrics", &[]),
];

const TENSORS: &[&str] = &["candle_core", "candle_nn", "candle_transformers"];
const HTTP: &[&str] = &["axum", "hyper", "tower", "tower_http"];

/// Crates that files must not know whose path begins so.
const STRANGERS: &[(&str, &[&[&str]])] = &[
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
    ("src/engine/", &[HTTP, &["tokenizers", "minijinja"]]),
    ("src/server/", &[TENSORS]),
    ("src/device_bench/", &[HTTP, &["tokio", "tokenizers"]]),
    ("src/loadgen/", &[TENSORS, HTTP, &["tokio", "tokenizers"]]),
    ("src/eval/", &[TENSORS, HTTP]),
    ("src/registry/", &[TENSORS, HTTP]),
    ("src/train/", &[HTTP, &["tokio", "tokenizers"]]),
    ("src/model/", &[HTTP, &["tokio"]]),
    ("src/kernels/", &[HTTP, &["tokio"]]),
    (
        "src/data/",
        &[TENSORS, HTTP, &["tokio", "tokenizers", "minijinja"]],
    ),
    ("src/text/", &[HTTP, &["tokio"]]),
];

/// Where `unsafe` may stand: the kernels, and where a file is mapped into memory: a checkpoint, and
/// the state of a training run.
const UNSAFE_HOMES: &[&str] = &[
    "src/kernels/",
    "src/model/checkpoint.rs",
    "src/train/run_folder.rs",
];

/// Where code may decide by dtype, device or quantisation. Elsewhere they may be named and handed on.
const DECISION_HOMES: &[&str] = &["src/kernels/", "src/model/device.rs"];

#[test]
fn arrows_point_down() {
    for (place, (layer, uses)) in LAYERS.iter().enumerate() {
        for used in *uses {
            let below = LAYERS[place + 1..].iter().any(|(name, _)| name == used);
            assert!(below, "{layer} may use {used}, which is not below it");
        }
    }
}

#[test]
fn the_crate_has_these_layers_and_no_others() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let tokens = lex(&lib);
    let mut found: Vec<&str> = tokens
        .windows(2)
        .filter(|pair| pair[0].text == "mod")
        .map(|pair| pair[1].text.as_str())
        .collect();
    let mut expected: Vec<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "modules of src/lib.rs and LAYERS differ");
}

#[test]
fn the_sources_keep_the_rules() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    assert!(
        files.len() > 1,
        "no sources found under {}",
        root().display()
    );
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable source file");
        let name = file.strip_prefix(root()).expect("a file of this package");
        found.extend(violations(&name.to_string_lossy(), &text));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a readable source folder")
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            rust_files(&entry, files);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
}

/// Every rule that the source `text` of `file` (its path from the package's root) breaks, in words.
fn violations(file: &str, text: &str) -> Vec<String> {
    let everything = lex(text);
    let mut found = Vec::new();
    if !at_home(file, UNSAFE_HOMES) {
        for token in everything.iter().filter(|token| token.text == "unsafe") {
            found.push(format!(
                "{file}:{}: unsafe outside {UNSAFE_HOMES:?}",
                token.line
            ));
        }
    }
    if file.ends_with("/tests.rs") || file.contains("/tests/") {
        return found;
    }
    let tokens = without_tests(&everything);
    let paths = paths(&tokens, &module_of(file));
    found.extend(paths.iter().filter_map(|path| forbidden_layer(file, path)));
    for (home, crates) in STRANGERS.iter().filter(|(home, _)| file.starts_with(home)) {
        for path in &paths {
            let stranger = path.names[0].as_str();
            if crates.iter().any(|list| list.contains(&stranger)) {
                found.push(format!(
                    "{file}:{}: {home} must not know {stranger}",
                    path.line
                ));
            }
        }
    }
    if !at_home(file, DECISION_HOMES) {
        for (line, name) in decisions(&tokens) {
            found.push(format!(
                "{file}:{line}: decides by {name} outside {DECISION_HOMES:?}"
            ));
        }
    }
    found.dedup();
    found
}

fn at_home(file: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| file.starts_with(home))
}

/// The module that a file holds, from the crate's root: `src/engine/mod.rs` is `[engine]`.
fn module_of(file: &str) -> Vec<String> {
    let inner = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut names: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if matches!(
        names.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        names.pop();
    }
    names
}

/// What is wrong with a path that leads to another layer, if it is.
fn forbidden_layer(file: &str, path: &PathInCode) -> Option<String> {
    let inside = path.names[0] == "crate" || (file == "src/main.rs" && path.names[0] == "tombola");
    let target = path.names.get(1).filter(|_| inside)?;
    if file == "src/main.rs" {
        return (target != "cli")
            .then(|| format!("{file}:{}: main uses {target}, not cli", path.line));
    }
    let own = module_of(file).into_iter().next()?;
    let Some((_, uses)) = LAYERS.iter().find(|(layer, _)| *layer == own) else {
        return Some(format!("{file}: {own} is not a layer"));
    };
    let allowed = *target == own || uses.contains(&target.as_str());
    (!allowed).then(|| format!("{file}:{}: {own} must not use {target}", path.line))
}

mod planted {
    //! The rules are worth something only if they find what breaks them, and nothing else.

    use super::violations;

    fn assert_found(file: &str, text: &str, what: &str) {
        let found = violations(file, text);
        let hit = matches!(&found[..], [only] if only.contains(what));
        assert!(
            hit,
            "expected one violation with {what:?} in {file}: {text}\nfound: {found:#?}"
        );
    }

    fn assert_clean(file: &str, text: &str) {
        let found = violations(file, text);
        assert!(found.is_empty(), "{file}: {text}\nfound: {found:#?}");
    }

    #[test]
    fn an_arrow_up_is_found_however_it_is_written() {
        for text in [
            "use crate::server::Router;",
            "use crate::{ticket::Ticket, server};",
            "use crate::{metrics as m, ticket::{self, Ticket}, server::{a, b as c}};",
            "fn f() { crate::server::run() }",
            "use super::server;",
            "mod inner { use super::super::server; }",
            "pub(in crate::server) struct A;",
        ] {
            let found = violations("src/registry/mod.rs", text);
            let hit = !found.is_empty() && found.iter().all(|line| line.contains("use server"));
            assert!(hit, "{text}\nfound: {found:#?}");
        }
        assert_found(
            "src/engine/runner.rs",
            "use super::super::text::Decoder;",
            "use text",
        );
        assert_found("src/metrics/mod.rs", "use super::ticket;", "use ticket");
        assert_found("src/model/mod.rs", "use crate::*;", "use *");
        assert_found("src/main.rs", "use tombola::engine;", "not cli");
        assert_found("src/extra/mod.rs", "use crate::ticket;", "not a layer");
    }

    #[test]
    fn arrows_down_and_within_a_layer_are_fine() {
        assert_clean(
            "src/engine/runner.rs",
            "use super::{request, self}; use crate::engine::x;",
        );
        assert_clean(
            "src/engine/mod.rs",
            "use crate::model;
use crate::registry::Lease as L;
use crate::ticket::*;",
        );
        assert_clean(
            "src/model/kv/mod.rs",
            "pub(super) fn f() { self.text.server() }",
        );
        assert_clean("src/main.rs", "fn main() { tombola::cli::run() }");
    }

    #[test]
    fn comments_strings_and_tests_are_not_code() {
        assert_clean(
            "src/text/mod.rs",
            r##"
            //! crate::engine
            /// [`crate::engine`] /* unsafe
            /* crate::engine /* nested */ unsafe */
            const A: &str = "crate::engine \" unsafe"; const B: &[u8] = br#"unsafe " "#;
            const C: char = '"'; const D: u8 = b'\''; fn f<'a>(r#unsafe_: &'a str) {}
            #[cfg(test)]
            #[allow(unused)]
            mod tests { use crate::engine; fn g() { if true {} } }
            "##,
        );
        assert_clean("src/text/tests.rs", "use crate::engine;");
        let after = "#[cfg(test)] use crate::engine; use crate::server;";
        assert_found("src/text/mod.rs", after, "use server");
    }

    #[test]
    fn strangers_are_found() {
        assert_found("src/ticket/format.rs", "use tokio::fs;", "tokio");
        assert_found(
            "src/ticket/mod.rs",
            "fn f(t: ::candle_core::Tensor) {}",
            "candle_core",
        );
        assert_found(
            "src/engine/scheduler/queue.rs",
            "use candle_core as c;",
            "candle_core",
        );
        for file in [
            "src/engine/scheduler.rs",
            "src/engine/policy/by_cost.rs",
            "src/engine/costs/mod.rs",
        ] {
            assert_found(file, "use candle_nn::ops;", "candle_nn");
        }
        assert_found(
            "src/server/openai.rs",
            "use candle_core::Tensor;",
            "candle_core",
        );
        assert_clean("src/engine/runner.rs", "use candle_core::Tensor;");
    }

    #[test]
    fn unsafe_is_found_outside_its_homes() {
        let text = "fn f() { unsafe { g() } }";
        assert_found("src/model/loader.rs", text, "unsafe");
        assert_found(
            "src/text/mod.rs",
            "#[cfg(test)] mod t { unsafe fn f() {} }",
            "unsafe",
        );
        assert_clean("src/kernels/linear.rs", text);
        assert_clean("src/model/checkpoint.rs", text);
    }

    #[test]
    fn decisions_by_dtype_or_device_are_found() {
        for text in [
            "fn f() { match d { DType::F32 => 1, _ => 2 } }",
            "fn f() { match d { A { x } => { 1 } (DType::F32, _) => 2 } }",
            "fn f() { match d { x if x == candle_core::DType::BF16 => 1 } }",
            "fn f() { if let Device::Cuda(d) = device {} }",
            "fn f() { if matches!(x.dtype(), DType::F32) {} }",
            "fn f() { x.dtype() != DType::F32 }",
            "fn f() { DType::F32 == x.dtype() }",
            "fn f() { device.is_cuda() }",
            "fn f() { match w { Weight::Quantized(q) => 1, _ => 2 } }",
            "use candle_core::DType::*;",
        ] {
            assert_found("src/engine/runner.rs", text, "decides by");
            assert_clean("src/kernels/linear.rs", text);
            assert_clean("src/model/device.rs", text);
        }
    }

    #[test]
    fn naming_a_dtype_is_no_decision() {
        for text in [
            "use candle_core::{DType, Device};",
            "fn f() { let x = t.to_dtype(DType::F32)?; }",
            "fn f() { match n { 1 => { DType::F32 } 2 => DType::BF16, _ => g() } }",
            "fn f(d: DType) { g(d == other, Tensor::zeros(1, DType::F32, &Device::Cpu)) }",
        ] {
            assert_clean("src/engine/runner.rs", text);
        }
    }
}
