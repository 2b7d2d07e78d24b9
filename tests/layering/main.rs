//! The architecture of the crate as tests: which layer may use which, which crates, keywords and
//! decisions a file may contain, and how files are laid out. The tests read the sources as text.
//!
//! `cargo test --release --test layering census -- --nocapture` counts files, lines, arrows and
//! circles. `TOMBOLA_CENSUS_ROOT` names another checkout to count.

mod census;
mod decisions;
mod graph;
mod layers;
mod layout;
mod planted;
mod rules;
mod source;

use std::path::{Path, PathBuf};

/// The root of this package.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below `folder` of the package at `root`, by their path from `root`, with their
/// text. Sorted.
fn rust_files(root: &Path, folder: &str) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    collect(&root.join(folder), &mut paths);
    assert!(!paths.is_empty(), "no sources found in {folder}/");
    let file = |path: PathBuf| {
        let name = path.strip_prefix(root).expect("a path below the root");
        let text = std::fs::read_to_string(&path).expect("a readable source file");
        (name.to_string_lossy().into_owned(), text)
    };
    paths.into_iter().map(file).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a readable source folder")
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            collect(&entry, files);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
}

/// Whether a file holds only unit tests, which may use more than the code that they test.
fn is_test_file(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("tests.rs")
}

/// The module that a file holds, from the crate's root: `src/engine/mod.rs` is `[engine]`.
fn module_of(file: &str) -> Vec<String> {
    let inner = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut names: Vec<String> = inner.split('/').map(str::to_owned).collect();
    let last = names.last().map(String::as_str);
    if matches!(last, Some("mod" | "lib" | "main")) {
        names.pop();
    }
    names
}
